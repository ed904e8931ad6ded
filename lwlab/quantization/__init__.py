"""Quantisation: what rounding weights to a few bits costs, and models that run rounded."""

from lwlab.quantization import baq, layerwise_quant
from lwlab.quantization.allocate import ALLOCATORS, allocate
from lwlab.quantization.calibrate import hessians, input_squares
from lwlab.quantization.error import error_table
from lwlab.quantization.gptq import Rounded, gptq
from lwlab.quantization.hadamard import hadamard_matrix, walsh_hadamard
from lwlab.quantization.matrices import Matrix, matrices
from lwlab.quantization.rounded import Quantized, fake_quantized

__all__ = [
    "ALLOCATORS",
    "Matrix",
    "Quantized",
    "Rounded",
    "allocate",
    "baq",
    "error_table",
    "fake_quantized",
    "gptq",
    "hadamard_matrix",
    "hessians",
    "input_squares",
    "layerwise_quant",
    "matrices",
    "walsh_hadamard",
]
