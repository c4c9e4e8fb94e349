r"""A formula as a row of tokens: commands, numbers, runs of letters, signs; what they mean."""

import re

from effopd.rewards.mathematics.formula import NoFormulaError, words

_GREEK = words(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi "
    "omicron rho varrho sigma varsigma tau upsilon phi varphi chi psi omega"
)
SYMBOLS = (
    _GREEK
    | {name.capitalize() for name in _GREEK}
    | words(
        "ell hbar aleph beth partial nabla imath jmath wp top bot odot oplus bullet dots ldots "
        "cdots prime ast star Pr dim deg ker"
    )
)
"""Commands that are letters, or count as such."""
FUNCTIONS = words(
    "sin cos tan cot sec csc sinh cosh tanh coth sech csch arcsin arccos arctan arccot arcsec "
    "arccsc arcsinh arccosh arctanh asin acos atan asinh acosh atanh arsinh arcosh artanh exp ln "
    "log lg"
)
"""Functions that need no brackets."""
NAMED = words("max min gcd lcm det tr arg Re Im sgn sign erf Li floor ceil abs conj rank")
"""Functions that have some."""
SAME = {"arsinh": "arcsinh", "arcosh": "arccosh", "artanh": "arctanh", "sign": "sgn"} | {
    f"a{name}": f"arc{name}" for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")
}
"""Other names of functions."""
RELATIONS = {
    "=": "=", ":=": "=", "<": "<", ">": ">", r"\lt": "<", r"\gt": ">", r"\le": "<=", r"\leq": "<=",
    r"\leqslant": "<=", r"\ge": ">=", r"\geq": ">=", r"\geqslant": ">=", r"\ne": "!=",
    r"\neq": "!=", r"\in": "in", r"\approx": "~", r"\simeq": "~",
} | {
    rf"\{name}": name
    for name in words(
        "equiv cong sim propto parallel perp to rightarrow mapsto implies Rightarrow iff subset "
        "subseteq supset supseteq notin Leftrightarrow leftrightarrow longrightarrow"
    )
}  # fmt: skip
"""Signs between formulas, and what they mean; `~` is about the same."""
TIMES = {r"\cdot", r"\times", "*"}
JOINTS = {
    ",": ",", ";": ",", "or": "or", "and": "and", r"\lor": "or", r"\vee": "or", r"\land": "and",
    r"\wedge": "and",
}  # fmt: skip
FENCES = {
    "|": ("|", "abs"), r"\|": (r"\|", "norm"), r"\lfloor": (r"\rfloor", "floor"),
    r"\lceil": (r"\rceil", "ceil"),
}  # fmt: skip
ACCENTS = words(
    "vec hat bar overline tilde widehat widetilde dot ddot mathbb mathcal mathscr mathfrak "
    "overrightarrow overleftarrow underline angle triangle"
)
STOPS = (
    set(RELATIONS) | TIMES | set(JOINTS)
    | {"", "+", "-", "/", r"\div", "^", "_", "!", "'", ")", "]", "}", r"\}", "&", r"\\", ":"}
    | {r"\pm", r"\mp", r"\cup", r"\cap", r"\setminus", r"\backslash", r"\mid", r"\rfloor"}
    | {r"\rceil", r"\%", "%", r"\choose", r"\degree", r"\circ", r"\otimes", "."}
)  # fmt: skip
OPAQUE = set("fghFGH")
"""Letters that are functions before any bracket; other letters before one letter or number only."""

_TOKEN = re.compile(
    r"\\(?:text|operatorname)\*?\s*\{[^{}]*\}|\\(?:begin|end)\s*\{[a-z]+\*?\}|\\(?:[a-zA-Z]+|.)"
    r"|\d+(?:\.\d+)?|\.\d+|[a-zA-Z]+|\S",
    re.DOTALL,
)
_JOINT = re.compile(r"\\text\s*\{\s*(or|and|,|;)\s*\}")
_CONDITION = re.compile(
    r"(?:for|where|with|if|when|whenever|provided|as|such that|since)\b.*", re.DOTALL
)
_NAMED = re.compile(r"(\\?[a-zA-Z]+(?: _ (?:\{ \w+ \}|\w+))?(?: ')*) \( [\w ,\\]* \) =")
_SENTENCE = re.compile(
    r"(?<![\\a-zA-Z{_])(?!(?:for|all|any|every|each|where|with|if|when|and|or|in|such|that)\b)"
    r"(?:[A-Za-z]{2,} [A-Za-z]{3,}|[A-Za-z]{3,} [A-Za-z]{2,})(?![a-zA-Z(])"
)
_FORMULA = re.compile(
    r"(?:for|where|with|if|when|and|or|in|pi|infinity|theta|a?r?c?(?:sin|cos|tan)h?|ln|log|exp)"
)


class Tokens:
    """The tokens of a text. Words that join statements come without their command."""

    def __init__(self, text: str) -> None:
        for said in _SENTENCE.findall(re.sub(r"\\text\s*\{[^{}]*\}", "", text)):
            if not any(_FORMULA.fullmatch(word) for word in said.split()):
                raise NoFormulaError(f"{said!r} are words")
        self._all: list[str] = _TOKEN.findall(text)
        self._at = 0

    @property
    def next(self) -> str:
        """The next token; "" at the end."""
        return self.peek(0)

    def peek(self, ahead: int) -> str:
        """The token so many places further on, or back; "" at the end."""
        place = self._at + ahead
        token = self._all[place] if place < len(self._all) else ""
        word = _JOINT.fullmatch(token) if token.startswith("\\text") else None
        return word.group(1) if word else token

    def take(self) -> str:
        """The next token, passed by."""
        token = self.next
        self._at += 1
        return token

    def expect(self, *tokens: str) -> str:
        """The next token, which has to be one of these."""
        if self.next not in tokens:
            raise NoFormulaError(f"expected {tokens[0]!r}, got {self.next!r}")
        return self.take()

    def ahead(self, count: int) -> str:
        """So many tokens, with spaces between them."""
        return " ".join(self._all[self._at : self._at + count])

    def skip(self, count: int) -> None:
        """Passes tokens by."""
        self._at += count

    def insert(self, token: str) -> None:
        """Puts a token before the next one."""
        self._all.insert(self._at, token)

    def split(self, size: int) -> None:
        """Makes two tokens of the next one, the first of a size; does nothing to a short one."""
        token = self._all[self._at]
        self._all[self._at : self._at + 1] = [part for part in (token[:size], token[size:]) if part]

    def index(self) -> str:
        """The text of an index or of a command's group, without braces and spaces."""
        if self.next != "{":
            if self.next.isalpha():
                self.split(1)
            return self.take()
        self.take()
        depth, parts = 1, []
        while depth:
            token = self.take()
            if not token:
                raise NoFormulaError("an index is not closed")
            depth += {"{": 1, "}": -1}.get(token, 0)
            parts.append(re.sub(r"\\text\s*\{(.*)\}", r"\1", token))
        return "".join(part for part in parts if part not in "{}")

    def name_of_equation(self) -> str:
        """What an equation begins with when it names a function, `P(x) =`, or words; passed by."""
        if self.next.startswith("\\text") and self.peek(1) == "=":
            return re.sub(r"\\text\s*\{\s*|\s*\}", "", self.take())
        head = self.ahead(12)
        if match := _NAMED.match(head):
            self.skip(match.group().count(" "))
            return match.group(1).replace(" ", "")
        return self.take() if re.match(r"(?!exp )[A-Za-z]{3,} =", head) else ""

    def condition(self) -> str:
        """What follows as a condition in words, such as "for all x"; "" otherwise."""
        if not self.next.startswith(("\\text", "for", "where", "with", "if", "when")):
            return ""
        said = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1 ", " ".join(self._all[self._at :]))
        said = said.strip(" ,(")
        if not _CONDITION.fullmatch(said):
            return ""
        said = re.sub(r"\b(?:for|all|every|any|each|real|numbers?|where|with|if|when)\b", "", said)
        return re.sub(r"[\s{}.]|\\left|\\right", "", said) or "all"
