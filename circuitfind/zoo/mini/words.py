"""Word lists of the mini corpus.

Every word here is one token when written with a leading space, both in mini's own
tokenizer and in GPT-2's, so a prompt made from these lists has the same length in either.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FEMALE: tuple[str, ...] = _words(
    "Mary Anna Alice Emma Sarah Laura Lisa Jane Kate Emily Jessica Jennifer Amy Rachel Rebecca Susan "
    "Karen Nancy Linda Barbara Elizabeth Helen Ruth Maria Julia Claire Diana Lucy Amanda Andrea Angela "
    "Anne Caroline Catherine Charlotte Christine Hannah Heather Katie Margaret Martha Megan Melissa "
    "Michelle Monica Nicole Olivia Patricia Sophie Stephanie"
)
MALE: tuple[str, ...] = _words(
    "John James Robert Michael William David Richard Joseph Thomas Charles Christopher Daniel Matthew "
    "Anthony Mark Donald Steven Paul Andrew Kenneth Kevin Brian George Edward Ronald Timothy Jason "
    "Jeffrey Ryan Jacob Gary Nicholas Eric Jonathan Stephen Larry Justin Scott Benjamin Samuel Frank "
    "Gregory Patrick Jack Dennis Henry Adam Peter Simon Tom"
)
NAMES: tuple[str, ...] = FEMALE + MALE

PLACES: tuple[str, ...] = _words(
    "store park school garden station office hospital library beach market restaurant museum church "
    "house theatre hotel airport farm shop river village bar gym zoo lake forest castle bank"
)
OBJECTS: tuple[str, ...] = _words(
    "drink book ring letter gift ball key bottle computer necklace kiss bone snack basketball flower "
    "phone coat hat map ticket bag cake card pen watch box lamp cup coin painting camera guitar"
)

EVENTS: tuple[str, ...] = _words(
    "war siege reign campaign dispute conflict drought voyage strike trial tour marriage occupation "
    "expedition project study construction festival rebellion famine crisis journey plague blockade "
    "alliance career tournament truce debate partnership feud struggle"
)
CENTURIES: tuple[str, ...] = tuple(str(n) for n in range(11, 20))
YEARS: tuple[str, ...] = tuple(f"{n:02d}" for n in range(100))

JOBS: tuple[str, ...] = _words(
    "cook singer writer teacher doctor driver dancer friend player leader student lawyer artist nurse "
    "runner reader speaker painter farmer pilot worker neighbor"
)

SINGULAR: tuple[str, ...] = _words(
    "key book car dog cat door window friend teacher student doctor picture letter table chair tree "
    "house ship bottle box cup lamp phone road bridge river garden farmer pilot driver king queen actor "
    "writer singer guard nurse lawyer judge manager engineer artist player boy girl son daughter "
    "cabinet"
)
PLURAL: tuple[str, ...] = tuple("boxes" if noun == "box" else noun + "s" for noun in SINGULAR)
PREPOSITIONS: tuple[str, ...] = ("to", "near", "behind", "with", "beside", "of", "by", "from")
STATES: tuple[str, ...] = _words("old new here gone lost ready famous quiet nice late small large")

COLOURS: tuple[str, ...] = _words("red blue green yellow black white pink purple brown grey")
THINGS: tuple[str, ...] = _words(
    "pen cup book ball box hat key lamp bag bottle coat card shirt ring plate bowl chair cap brush "
    "knife phone pencil mug scarf"
)
SURFACES: tuple[str, ...] = _words("table desk shelf floor bed counter")

DAYS: tuple[str, ...] = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS: tuple[str, ...] = _words(
    "January February March April May June July August September October November December"
)
NUMBERS: tuple[str, ...] = _words(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
DIGITS: tuple[str, ...] = tuple(str(n) for n in range(1, 21))

CAPITALS: dict[str, str] = dict(
    pair.split(":")
    for pair in _words(
        "France:Paris Germany:Berlin Italy:Rome Spain:Madrid Russia:Moscow China:Beijing Japan:Tokyo "
        "Egypt:Cairo Greece:Athens Turkey:Ankara Iran:Tehran Iraq:Baghdad Syria:Damascus Lebanon:Beirut "
        "Afghanistan:Kabul Poland:Warsaw Austria:Vienna Hungary:Budapest Ireland:Dublin England:London "
        "Portugal:Lisbon Norway:Oslo Sweden:Stockholm Finland:Helsinki Denmark:Copenhagen Belgium:Brussels "
        "Cuba:Havana Canada:Ottawa Libya:Tripoli Pakistan:Islamabad Thailand:Bangkok Scotland:Edinburgh "
        "Wales:Cardiff Peru:Lima Chile:Santiago Indonesia:Jakarta Australia:Canberra Switzerland:Bern "
        "Tunisia:Tunis Jamaica:Kingston"
    )
)

# Argument and description words of the docstring behaviour. Descriptions open a docstring
# without a space, so those words are single tokens in that form too.
ARGUMENTS: tuple[str, ...] = _words(
    "load size file last port order image count value user path root level index label limit state "
    "color range point group event model input output target source result content sample weight height "
    "width length depth speed mode rate cost text page line list item code name type time data test "
    "task field frame block shape scale offset option parent child node base"
)
DESCRIPTIONS: tuple[str, ...] = _words(
    "oil column piece crime population unit dark water light music paper money stone winter city "
    "country family history science power trade energy market public local social early human strong "
    "simple clear common major modern special open free full high low deep fast slow hard soft cold "
    "warm dry fresh sweet rich poor wild young quick sharp smart heavy broad fair"
)

# Common words for random lists; they share no word with names, colours, days or numbers.
COMMON: tuple[str, ...] = _words(
    "apple arm army baby bear bed bell bird boat body bone bread brain butter camp candle candy cell "
    "chain cheese chest chicken circle class clay cliff cloud coal coffee corn cotton couch cow crown "
    "dance desert dinner dish dream dress drum duck dust eagle earth edge egg engine eye face fan farm "
    "fence film finger fire fish flag flame floor foot fork fruit game gate ghost giant glass glove "
    "goat gold grass guest gun hair hammer hand heart hill horn horse ice iron island jacket jail juice "
    "kid knee lady lamb leaf leg lemon lion lip lock log luck lunch machine magic meal meat metal milk "
    "mirror moon mother motor mountain mouse mouth mud nail neck nest net night noise nose nut ocean "
    "onion oven owl palm pan party pearl pie pig pin pipe plane plant plastic plate pocket poem pool "
    "pot potato prince prison queen rabbit rail rain rice robot rock roof room rope rose rug salt sand "
    "sauce school sea seat seed shadow sheep shell shirt shoe silk silver skin sky sleep smoke snake "
    "snow soap soil soup spider spoon spring square staff star steel stem stick storm stove straw "
    "street sugar suit sun table tail tank tea teeth tent thumb tiger tin toe tongue tooth tower toy "
    "train truck tube turtle valley voice wall wave wheel wind wine wing wolf wood wool worm wrist yard"
)
