r"""One way to write what mathematicians write in many: spaces, Unicode, wrappers, thousands, words.

Everything here is text in, text out, in time linear in the length or close to it; nothing is
evaluated.
"""

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction

from effopd.rewards.extraction import unwrapped
from effopd.rewards.mathematics.formula import words

_GREEK_LETTERS = "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ"
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
)
_SYMBOLS = str.maketrans({
    "−": "-", "–": "-", "‐": "-", "‑": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ",
    "÷": "/", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ",
    "≠": r"\ne ", "≈": r"\approx ", "∪": r"\cup ", "∩": r"\cap ", "∖": r"\setminus ",
    "∅": r"\emptyset ", "°": r"^\circ ", "±": r"\pm ", "∓": r"\mp ", "∈": r"\in ", "∣": r"\mid ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℚ": r"\mathbb{Q}", "ℕ": r"\mathbb{N}",
    "ℂ": r"\mathbb{C}", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "’": "'", "′": "'", "“": '"', "”": '"',
    "…": r"\ldots ", "ℓ": r"\ell ", "→": r"\to ", "∨": r"\lor ", "∧": r"\land ", "ℵ": r"\aleph ",
    "⟨": "(", "⟩": ")", "¬": r"\neg ", "∀": r"\forall ",
    "\u00c5": " angstrom", "\u212b": " angstrom",
} | {
    letter: f"\\{name} " for letter, name in zip(_GREEK_LETTERS, _GREEK_NAMES.split(), strict=True)
})  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ", "0123456789-n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

_RENAMED = {
    "langle": "(", "rangle": ")", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]",
    "vert": "|", "lvert": "|", "rvert": "|", "Vert": r"\|", "lVert": r"\|", "rVert": r"\|",
    "dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac", "dbinom": r"\binom",
    "tbinom": r"\binom", "imath": "i", "percent": r"\%", "varnothing": r"\emptyset",
    "smallsetminus": r"\setminus", "backslash": r"\setminus", "dots": r"\ldots",
    "cdots": r"\ldots", "quad": " ", "qquad": " ", "thinspace": " ", "medspace": " ",
    "thickspace": " ", "nolinebreak": " ", "dollar": "$", "textdollar": "$", "euro": "€",
    "texteuro": "€", "pounds": "£", "textsterling": "£", "yen": "¥", "lt": "<", "gt": ">",
    "overline": r"\bar", "widehat": r"\hat", "widetilde": r"\tilde", "checkmark": "",
    "blacksquare": "", "nicefrac": r"\frac", "sfrac": r"\frac", "Bbb": r"\mathbb", "cr": r"\\",
    "AA": " angstrom", "textdegree": r"^\circ ", "reals": r"\mathbb{R}", "Reals": r"\mathbb{R}",
} | {letter: rf"\mathbb{{{letter}}}" for letter in "RZQN"} | dict.fromkeys(
    words(
        "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr middle "
        "displaystyle textstyle scriptstyle limits nolimits large Large LARGE huge Huge normalsize "
        "small tiny bf boldmath centering strut mathstrut noindent hfill hfil null"
    ),
    "",
)  # fmt: skip
"""Commands that are written otherwise, or have to do with layout alone."""
_FACES = words(
    "mathbf boldsymbol bm pmb mathit mathnormal underline uline ensuremath emph mathop mathstrut "
    "mathrel mathbin overset underset text textbf textit textrm textsf texttt textnormal textup "
    "mathrm mathsf mathtt mbox hbox framebox operatorname rm unit si"
)
_HIDDEN = words("phantom hphantom vphantom hspace vspace label tag hskip")
_SETS = words("mathbb mathcal mathscr mathfrak vec hat bar")

_POWERS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_FLAT = r"(?:[^{}]|\{[^{}]*\})*?"
"""A text with groups in it, but none within them."""

_Replacement = str | Callable[[re.Match[str]], str]
_Rules = tuple[tuple[str, _Replacement], ...]
_IN_LATEX: _Rules = (
    (r"\\(?:left|right)\s*\.", ""),
    (r"\\([a-zA-Z]+)\*?", lambda match: _RENAMED.get(match.group(1), match.group())),
    (r"\\\\\s*\[\s*-?[\d.]+\s*[a-z]{2}\s*\]", r"\\\\"),
    (r"(?<=\d),\\!\s*(?=\d{3})", ""),
    (r"\{([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}", r"\\binom{\1}{\2}"),
    (rf"\{{({_FLAT})\\over(?![a-zA-Z])({_FLAT})\}}|^({_FLAT})\\over(?![a-zA-Z])({_FLAT})$",
     r"\\frac{\1\3}{\2\4}"),
    (r"\\(?:SI|qty)\s*\{([^{}]*)\}\s*\{([^{}]*)\}",
     lambda match: rf"{match[1]} \text{{{match[2].replace(chr(92), ' ')}}}"),
    (r"\\ang\s*\{([^{}]*)\}", r"\1^\\circ "),
    (r"\\num\s*\{([^{}]*)\}", r"\1"),
    (r"\^\s*\{?\s*\\degree(?![a-zA-Z])\s*\}?", r"^\\circ "),
    (r"\\!\s*|(?<=\d)\\,\s*(?=\d)|(?<!\\)\\[()\[\]]", ""),
    (r"(?<!\\)\\[,;:> \n]", " "),
    (r"\\\{\s*\\\}", r"\\emptyset"),
    (r"\^\s*\{\s*((?:\\prime\s*)+)\}", lambda match: "'" * match.group(1).count("prime")),
    (r"\^\s*\\prime(?![a-zA-Z])", "'"),
    (r"\\not\s*(?:=|\\eq(?![a-zA-Z]))", r"\\ne "),
    (r"\\not\s*\\in(?![a-zA-Z])", r"\\notin "),
    (r"\\(begin|end)\s*\{(?:small|[bBvVp])?matrix\*?\}", r"\\\1{pmatrix}"),
    (rf"\\(mathrm|mathbf|boldsymbol|mathit|{'|'.join(sorted(_SETS))})\s*"
     r"([a-zA-Z](?![a-zA-Z])|\\[a-zA-Z]+)", r"\\\1{\2}"),
    (r"\{\s*\\rm\s+([^{}]*)\}", r"\\text{\1}"),
)  # fmt: skip
_ANYWHERE: _Rules = (
    (r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ]+", lambda match: f"^{{{match.group().translate(_RAISED)}}}"),
    (r"[₀₁₂₃₄₅₆₇₈₉]+", lambda match: f"_{{{match.group().translate(_LOWERED)}}}"),
    (r"√\s*(\d+|[a-z])", r"\\sqrt{\1}"),
    (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"(?<=[\w)\]}])\*\*(?=[\w({\\-])(?!.*\*\*\s*$)", "^"),
    (r"\*\*", ""),
    (r"``(.*)''", r"\1"),
    (r"(?<=\d)\{(?:,|\\[,;: ]|\s)\}\s*(?=\d{3})", ""),
    (r"\{,\}", ","),
    ("~", " "),
    (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r"\\times "),
    (r"(?<![\\a-zA-Z])log(2|10)\(", r"\\log_{\1}("),
    (r"\.\.\.", r"\\ldots"),
    (r"\^\s*\{\s*('+)\s*\}", r"\1"),
    (r"<=|=<", r"\\le "),
    (r">=", r"\\ge "),
    (r"!=|/=", r"\\ne "),
)  # fmt: skip
_LATER: _Rules = (
    (r"(?<![a-zA-Z\\])(?:np|numpy|math|sympy)\.(?=[a-z])", ""),
    (r"\^\s*\{?\s*\\text\s*\{(?:st|nd|rd|th)\}\s*\}?|\^\s*\{\s*(?:st|nd|rd|th)\s*\}"
     r"|(?<=\d)\s*\\text\s*\{\s*(?:st|nd|rd|th)\s*\}", ""),
    (r"\\text\s*\{\s*([+-]?)\s*(?i:inf|infinity)\s*\}", r"\1\\infty "),
    (r"(?<=:\d\d)\s*(?:\\text\s*\{\s*)?"
     r"(?:(am|AM|a\.m\.?|A\.M\.?)|pm|PM|p\.m\.?|P\.M\.?)\s*\}?$",
     lambda match: rf"\text{{{'am' if match[1] else 'pm'}}}"),
    (r"(?<![\d.])(\d+)\s*\^\s*\{?\s*\\circ\s*\}?\s*(\d+(?:\.\d+)?)\s*'(?!')"
     r"(?:\s*(\d+(?:\.\d+)?)\s*(?:''|\"))?", lambda match: _sexagesimal(*match.groups())),
    (r"^\\text\s*\{(\s*[+-]?[$]?[\d.,]+\s+[a-z]+illion[^{}]*)\}$", r"\1"),
    (rf"(?<=\d)\s*(?:(\\text\s*\{{)\s*)?({'|'.join(_POWERS)})(?![a-z])(?(1)\s*([^{{}}]*)\}})",
     lambda match: rf"\times 10^{{{_POWERS[match[2]]}}}"
     + (rf" \text{{{match[3]}}}" if match[3] else "")),
    (r"\\mu\s*\\text\s*\{\s*", r"\\text{micro"),
    (r",?\s*\\forall(?![a-zA-Z])", r" \\text{for all}"),
    (r"\s*,?\s*(?:\\p?mod(?![a-zA-Z])\s*\{?\s*(\w+)\s*\}?"
     r"|\(\s*\\?b?mod(?![a-zA-Z])\s*\{?\s*(\w+)\s*\}?\s*\))$", r" \\text{for mod \1\2}"),
    (r"([a-zA-Z]\s*\(\s*[a-z]\s*\))\s*\\equiv(?![a-zA-Z])|\\equiv(?=.*\\text\{for mod)", r"\1="),
    (r"^(?:([a-zA-Z])\s*:\s*)?([a-z])\s*\\mapsto(?![a-zA-Z])",
     lambda match: f"{match[1] or 'f'}({match[2]})="),
    (r"(?<=[)\]])\s*(?:U|union|\\text\s*\{\s*(?:U|union)\s*\})\s*(?=[(\[\]])", r"\\cup "),
    (r"(?<![\w\\.])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d+)(?!\w)", r"\1\\times 10^{\2}"),
    (r"\^\s*([a-zA-Z])(?![a-zA-Z])", r"^{\1}"),
    (r"(?<![a-zA-Z\\])([eE])_", r"\\text{\1}_"),  # a letter with an index, not Euler's number
    (r"\\mathbb\{R\}\s*[\^_]\s*\{?\s*(?:\+|>\s*0)\s*\}?", r"(0,\\infty)"),
    (r"\\mathbb\{R\}\s*[\^_]\s*\{?\s*(?:-|<\s*0)\s*\}?", r"(-\\infty,0)"),
    (r",?\s*\(\s*[a-z](?:\s*,\s*[a-z])*\s*\\in\s*\\mathbb\{[A-Z]\}[^()]*\)$", ""),
    (r"(^|\\cup\s*|\\in\s*)\]([^\[\],;]+)[,;]([^\[\],;]+)([\[\]])(?=\s*(?:\\cup|$))",
     r"\1(\2,\3\4"),
    (r"([(\[])([^\[\],;]+)[,;]([^\[\],;]+)\[(?=\s*(?:\\cup|$))", r"\1\2,\3)"),
    (r"^\s*(?:=|\\approx(?![a-zA-Z])|\\simeq(?![a-zA-Z]))|^\s*[\"`]+|[\"`]+[\s.;]*$", ""),
    (r"\\mathbb\{R\}\s*\^\s*\{?\s*\*\s*\}?", r"\\mathbb{R}\\setminus\\{0\\}"),
    (r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{(\d+)\}", lambda match: _repeating(*match.groups())),
    (r"(?<![\d.,(])(\d{1,3})((?: \d{3})+)(?![\d/,]| ?/|\.\d)",
     lambda match: match.group().replace(" ", "")),
)  # fmt: skip
_COMPILED = [
    [(re.compile(pattern), replacement) for pattern, replacement in rules]
    for rules in (_IN_LATEX, _ANYWHERE, _LATER)
]
_BARE = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]+)?|[A-Za-z])")
"""What is normalised already."""

_OPENED = re.compile(
    rf"\\(?P<color>textcolor|colorbox|color)\s*(?:\[[^\[\]]*\]\s*)?\{{[^{{}}]*\}}\s*"
    rf"|\\(?P<hidden>{'|'.join(sorted(_HIDDEN))})\*?\s*(?=\{{)"
    rf"|\\(?P<face>{'|'.join(sorted(_FACES, reverse=True))})\*?\s*(?=\{{)"
)
_WORD_FACES = words("text mathrm operatorname mbox hbox rm mathsf mathtt unit si")
_ENVIRONMENT = re.compile(
    r"\\(?:begin|end)\s*\{(?:aligned|align|alignedat|gathered|gather|split|equation|displaymath|"
    r"math|multline|eqnarray|center)\*?\}"
)
_REALS = re.compile(
    r"(?i)(?:\\text\s*\{\s*)?(?:the set of )?(?:all |the )?(?:set of )?real(?:s| numbers| values)"
    r"\s*\}?|(?:\\text\s*\{\s*)?all reals?\s*\}?"
)
_PERCENT = re.compile(r"(.*?)\s*(?:\\?%|\\text\{\s*(?:\\?%|per ?cent)\s*\}|per ?cent)", re.DOTALL)
_NUMERAL_NAMES = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
)
_NUMERALS = {name: str(base) for base, name in enumerate(_NUMERAL_NAMES.split(), start=2)}
_BASE = re.compile(r"([0-9][0-9A-Za-z]*?)(?:_(?:base)?|(?:in)?base)(\d+|[a-z]+)")
_WORDS = re.compile(r"[A-Za-z][A-Za-z ,.'’&\"-]*[A-Za-z]{2}[A-Za-z .!'\"-]*|(?i:no|yes)[.!]*")
_SHORT = words(
    "yes odd all any one two six ten red sun mon tue wed thu fri sat jan feb mar apr may jun jul "
    "aug sep oct nov dec dne"
)
_FORMULA_WORD = re.compile(
    r"\\?(?:arc|a)?(?:sin|cos|tan|cot|sec|csc)h?|ln|log|exp|sqrt|pi|alpha|beta|gamma|delta|theta|"
    r"lambda|omega|sigma|[iI]nfinity|INFINITY|infty|inf|oo|and|or|[a-zA-Z]"
)
_SAME_WORDS = (
    ("none", "no solution", "no solutions", "there is no solution", "there are no solutions",
     "no real solution", "no real solutions", "empty set", "no roots", "no real roots"),
    ("infinitely many", "infinitely many solutions", "infinite solutions"),
    ("dne", "does not exist", "limit does not exist"),
    ("diverges", "divergent", "series diverges"),
    ("converges", "convergent", "series converges"),
)  # fmt: skip
_PRICE = re.compile(r"\s*[+-]?\s*\$\s*[\d.][^$]*")
_LEAD = r"(?i:(?:the )?(?:final )?answer(?: is:?|:))"
_LED = re.compile(
    rf"{_LEAD}\s*(?P<plain>\S.*)|\\text\{{\s*{_LEAD}\s*(?:(?P<words>[^{{}}]+)\}}|\}}\s*(?P<rest>\S.*))"
)
_PHRASES = {phrase.replace(" ", ""): group[0] for group in _SAME_WORDS for phrase in group}


def normalize_latex(text: str) -> str:
    r"""A formula in plain LaTeX: ASCII digits, one kind of fraction, no sizes, colours and spaces.

    Invisible characters and halves of surrogate pairs vanish; digits of every script become ASCII;
    `1e3` becomes `1\times 10^{3}`; `0.\overline{3}` becomes a fraction; commas and spaces between
    thousands go, and a dot at the end. Words are in `\text{...}`, whatever command they were in.
    """
    if _BARE.fullmatch(text):
        return text
    if not (text.isascii() and text.isprintable()):
        text = "".join(_plain(character) for character in text).translate(_SYMBOLS)
    # `$` is a currency but around formulas
    is_price = re.sub(r"\\\$", "", text).count("$") % 2 and _PRICE.fullmatch(text)
    if "$" in text and not is_price:
        text = re.sub(r"(\\)?\$", lambda match: "$" if match.group(1) else "", text)
    if "\\" in text:
        text = _rewritten(text, _COMPILED[0])
    text = _rewritten(text, _COMPILED[1])
    if "\\" in text:
        text = _faced(_unaligned(text))
    text = _rewritten(re.sub(r"\s+", " ", text), _COMPILED[2])
    text = re.sub(r"(?:\s|\\\\|[.;])+$", "", text).lstrip()
    while text.startswith("{") and _group_end(text) == len(text) - 1:  # braces around all of it
        text = text[1:-1].strip()
    return r"\mathbb{R}" if "real" in text and _REALS.fullmatch(text) else _joined(text)


def without_lead(text: str) -> str:
    r"""A normalised answer without `Answer:` and the like before it, also in words."""
    led = _LED.fullmatch(text)
    return next(filter(None, led.groups())) if led else text


def _rewritten(text: str, rules: list[tuple[re.Pattern[str], _Replacement]]) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def strip_spaces(text: str) -> str:
    """Text without the spaces that mean nothing: those not between two letters or digits."""
    return re.sub(r"\s+(?!\w)|(?<!\w)\s+", "", text)


def with_logarithm(text: str, base: str) -> str:
    r"""Normalised text with `\log` without a base as `\ln` for the base "e", as `\lg` for "10"."""
    return re.sub(
        r"\\?(?<![a-zA-Z])log(?![a-zA-Z])(?!\s*_)", r"\\ln" if base == "e" else r"\\lg", text
    )


def split_percent(text: str) -> str | None:
    """What stands before the percent sign a text ends on; None without one."""
    match = _PERCENT.fullmatch(text)
    return match.group(1) if match and match.group(1) else None


def split_base(text: str) -> tuple[str, str]:
    r"""Digits and the base they are written in, as in `1011_2`; the base is "" without one."""
    match = _BASE.fullmatch(re.sub(r"\\text|[{}()\s]", "", text))
    base = match and _NUMERALS.get(match.group(2), match.group(2))
    if match is None or base is None or not base.isdigit():
        return text, ""
    return match.group(1).upper().lstrip("0") or "0", base


def as_words(text: str) -> str | None:
    r"""What an answer in words says, in a form to compare; None for a formula.

    Words without a command around them are `no`, known ones of three letters, names, and longer
    ones, as in `Evelyn` and `no solution`; `abc` is a product. Case and punctuation do not count,
    and some phrases mean the same.
    """
    words = unwrapped(text)
    if not _WORDS.fullmatch(words) or re.match("[b-zB-HJ-Z] ", words):
        return None
    if all(_FORMULA_WORD.fullmatch(word) for word in re.findall("[A-Za-z]+", words)):
        return None
    key = re.sub(r"^(?:an?|the)\s|[^a-z]", "", words.lower())
    if len(words) == 3 and words == text and words.islower() and key not in _SHORT:
        return None
    return _PHRASES.get(key, key)


def _plain(character: str) -> str:
    """A character as ASCII where it is a digit, a space or a wide form; "" where it is unseen."""
    if character.isascii():
        return character if character.isprintable() or character.isspace() else ""
    kind = unicodedata.category(character)
    if kind == "Nd":
        return str(unicodedata.digit(character))
    if "\uff01" <= character <= "\uff5e":
        return chr(ord(character) - 0xFEE0)
    return {"Cf": "", "Cs": "", "Cc": "", "Zs": " "}.get(kind, character)


def _unaligned(text: str) -> str:
    """Text without environments of aligned lines: its lines one after another."""
    if not _ENVIRONMENT.search(text):
        return text
    lines = _ENVIRONMENT.sub("", text).replace("&", "").split(r"\\")
    joined = r"\\".join(line.strip() for line in lines if line.strip())
    return re.sub(r"\\\\(?=[=<>+-]|\\[lg]e)", "", joined).replace(r"\\", ", ")


def _faced(text: str) -> str:
    r"""Text with words in `\text{...}`, formulas without font and colour."""
    pieces: list[str] = []
    while match := _OPENED.search(text):
        pieces.append(text[: match.start()])
        rest = text[match.end() :]
        end = _group_end(rest) if rest.startswith("{") else 0
        content, text = rest[1:end], rest[end + 1 :] if end else rest
        if not end or match.group("hidden"):
            continue
        face = match.group("face") or "color"
        if content.strip() == "min" and not re.match(r"\s*[({\\_a-zA-Z]", text):
            pieces.append(r"\text{min}")  # minutes: the least of something has something behind it
        else:
            pieces.append(_content(face, content.strip() if face != "text" else content))
    return "".join(pieces) + text


def _content(face: str, content: str) -> str:
    bare = content.strip()
    if face in {"overset", "underset"}:
        return ""
    content, bare = _faced(content), _faced(bare)
    has_word = re.search(r"(?<![\\a-zA-Z])[a-zA-Z]{2}", bare) is not None
    if bare in {"e", "i", "d"} or (face not in _WORD_FACES and not has_word):
        return f"{{{bare}}}" if len(bare) > 1 else f" {bare}"
    if re.fullmatch(r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|ln|log|exp|max|min|gcd|lcm", bare):
        return f"\\{bare} "
    is_formula = re.search(r"\\(?!cdot|times|Omega|mu|%)[a-zA-Z]", bare) and not has_word
    if is_formula or not re.search("[a-zA-Z]", bare):
        return content
    inside = re.sub(r"\^\s*\{\s*(-?\d+)\s*\}", r"^\1", bare)
    inside = re.sub(r"\\cdot|\\times|\\,|[{}\\]", " ", inside)
    return f"\\text{{{inside}}}"


def _group_end(text: str) -> int:
    """Where the group that a text begins with is closed; 0 when it never is."""
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return 0


def _joined(text: str) -> str:
    """Text without commas between thousands, where they do not separate entries in brackets."""
    if not re.search(r"\d,\d{3}", text):
        return text
    parts, last, depth = [], 0, 0
    for match in re.finditer(r"\\?[()\[\]{}]|(?<![\d.])\d{1,3}(?:,\d{3})+(?![\d])", text):
        token = match.group()
        depth += (token in {"(", "[", r"\{"}) - (token in {")", "]", r"\}"})
        if depth == 0 and token[0].isdigit():
            parts += [text[last : match.start()], token.replace(",", "")]
            last = match.end()
    return "".join(parts) + text[last:]


def _repeating(whole: str, fixed: str, repeated: str) -> str:
    """A repeating decimal as a fraction."""
    start = Fraction(int((whole + fixed) or "0"), 10 ** len(fixed))
    value = start + Fraction(int(repeated), (10 ** len(repeated) - 1) * 10 ** len(fixed))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _sexagesimal(degrees: str, minutes: str, seconds: str | None) -> str:
    """Degrees, minutes and seconds as a fraction of degrees."""
    value = int(degrees) + Fraction(minutes) / 60 + Fraction(seconds or 0) / 3600
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}^\circ "
