"""The words and signs of formulas: what they are called in LaTeX and in plain text."""


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


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
FENCES = {"|": "|", r"\lvert": r"\rvert", r"\|": r"\|", r"\lVert": r"\rVert"}
STEPS = {r"\lfloor": (r"\rfloor", "floor"), r"\lceil": (r"\rceil", "ceil")}
ACCENTS = words(
    "vec hat bar overline tilde widehat widetilde dot ddot mathbb mathcal mathscr mathfrak "
    "overrightarrow overleftarrow underline angle triangle"
)
STOPS = (
    set(RELATIONS) | TIMES | set(JOINTS) | set(FENCES.values()) - {"|", r"\|"}
    | {"", "+", "-", "/", r"\div", "^", "_", "!", "'", ")", "]", "}", r"\}", "&", r"\\", ":"}
    | {r"\pm", r"\mp", r"\cup", r"\cap", r"\setminus", r"\backslash", r"\mid", r"\rfloor"}
    | {r"\rceil", r"\%", "%", r"\choose", r"\degree", r"\circ", r"\otimes", "."}
)  # fmt: skip
OPAQUE = set("fghFGH")
"""Letters that are functions before any bracket; other letters before one letter or number only."""
