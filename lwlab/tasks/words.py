"""Word lists: common English words, filtered against a tokenizer when a task is made."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MALE = _words(
    """James John Robert Michael William David Richard Joseph Thomas Charles Christopher Daniel
    Matthew Anthony Mark Steven Paul Andrew Joshua Kenneth Kevin Brian George Edward Ronald Timothy
    Jason Jeffrey Ryan Jacob Gary Nicholas Eric Jonathan Stephen Larry Justin Scott Brandon Benjamin
    Samuel Frank Gregory Raymond Patrick Jack Dennis Jerry Tyler Aaron Henry Douglas Peter Adam
    Nathan Walter Carl Roger Arthur Simon Martin Philip Oliver Tom Dan"""
)
FEMALE = _words(
    """Mary Patricia Jennifer Linda Elizabeth Barbara Susan Jessica Sarah Karen Lisa Nancy Margaret
    Sandra Ashley Emily Michelle Carol Amanda Dorothy Melissa Deborah Stephanie Rebecca Sharon Laura
    Kathleen Amy Angela Anna Emma Nicole Helen Samantha Katherine Christine Rachel Catherine Maria
    Heather Diane Ruth Julie Olivia Victoria Kelly Lauren Christina Joan Judith Andrea Hannah Martha
    Teresa Sara Alice Julia Sophia Charlotte Kate Jane Lucy Claire Molly Ella Clara"""
)
NAMES = MALE + FEMALE

PLACES = _words(
    """store park school office station market library hospital restaurant garden house zoo beach
    museum airport hotel church farm theater bar mall gym bank kitchen village"""
)
# Each of them reads well after "gave a".
OBJECTS = _words(
    """drink book ring ball gift letter present cake key ticket coin bottle flower phone toy
    bag watch hat basketball computer necklace bone pen map snack sandwich"""
)

# Events that last, for "The {noun} lasted from the year ...".
EVENTS = _words(
    """war trial expedition conflict campaign siege journey construction project dispute dynasty
    empire reign mission program tour strike voyage occupation alliance crisis marriage contract
    plague drought investigation struggle rebellion tradition career"""
)

# singular, plural
NOUNS = tuple(
    (pair.split("/")[0], pair.split("/")[1])
    for pair in _words(
        """boy/boys girl/girls man/men woman/women teacher/teachers doctor/doctors
    student/students author/authors farmer/farmers driver/drivers lawyer/lawyers manager/managers
    officer/officers child/children king/kings friend/friends parent/parents worker/workers
    artist/artists writer/writers player/players dog/dogs cat/cats horse/horses bird/birds car/cars
    house/houses book/books table/tables chair/chairs tree/trees key/keys picture/pictures
    building/buildings window/windows river/rivers flower/flowers letter/letters
    machine/machines computer/computers city/cities"""
    )
)

# For lists of unrelated words; no two are a common pair.
THINGS = _words(
    """apple river stone paper window cloud tiger piano silver bridge carrot doctor engine forest
    guitar hammer island jacket kettle lemon mirror needle orange pencil rabbit saddle temple
    umbrella violin wagon yellow butter castle desert eagle flower garden harbor insect jungle
    ladder market napkin ocean pepper quarter ribbon shadow ticket uncle valley winter candle dragon
    fabric hockey marble monkey planet rocket salmon sugar tunnel turtle velvet whale"""
)
