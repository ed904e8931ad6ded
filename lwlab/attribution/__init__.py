"""Attribution: which parts of a model an answer came from."""
