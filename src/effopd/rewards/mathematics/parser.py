r"""Reads a formula as people answer with it, LaTeX or plain, into a tree; nothing is evaluated.

The grammar is that of answers: sums and products, also without a sign for "times"; powers, roots,
fractions, functions with or without brackets; points, intervals, sets, matrices; relations and
chains of them; lists joined by commas, "or" and "and". What it does not know is refused, never read
in part.
"""

import re
from fractions import Fraction
from functools import lru_cache

from effopd.rewards.mathematics import tokens as known
from effopd.rewards.mathematics.formula import Node, NoFormulaError, number, product
from effopd.rewards.mathematics.tokens import Tokens

_NUMBERS = ("number", "decimal")


@lru_cache(maxsize=256)  # the samples of one problem share its reference
def parse(text: str) -> Node:
    """The formula that all of a normalised text is, else NoFormulaError."""
    return _Parser(text).whole()


class _Parser(Tokens):
    """A text, token by token."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.fences: list[str] = []
        self.calls = 0

    def whole(self) -> Node:
        """A list or less, with what is said behind it about when it holds."""
        node = self.listing()
        if qualifier := self.condition():
            return Node("qualified", qualifier, (node,))
        if self.next:
            raise NoFormulaError(f"does not go on with {self.next!r}")
        return node

    def listing(self) -> Node:
        """Statements joined by commas or words."""
        items, joints = [self.statement()], []
        while self.next in known.JOINTS:
            while self.next in known.JOINTS:  # `1, or 2`
                joint = known.JOINTS[self.take()]
            if self.next == "" or self.condition():
                break
            joints.append(joint)
            items.append(self.statement())
        if not joints:
            return items[0]
        return Node("list", next((each for each in joints if each != ","), ","), tuple(items))

    def statement(self) -> Node:
        """A formula, or a chain of relations between some."""
        name = self.name_of_equation()
        sides, signs = [Node("symbol", name) if name else self.sets()], []
        while self.next in known.RELATIONS or self.ahead(2) == ": =":
            self.skip(self.next == ":")
            signs.append(known.RELATIONS[self.take()])
            sides.append(self.sets())
        return Node("relation", " ".join(signs), tuple(sides)) if signs else sides[0]

    def sets(self) -> Node:
        """Unions, intersections and differences, from the left."""
        node = self.sums()
        names = {r"\cup": "union", r"\cap": "intersection"}
        while self.next in names or self.next in {r"\setminus", r"\backslash"}:
            kind = names.get(self.take(), "difference")
            other = self.sums()
            same = node.kind == kind != "difference"
            node = Node(kind, "", (*node.args, other) if same else (node, other))
        return node

    def sums(self) -> Node:
        terms: list[Node] = []
        while True:
            sign = ""
            while self.next in {"+", "-"}:
                sign = "-" if (self.take() == "-") != (sign == "-") else "+"
            if terms and not sign:
                break
            term = self.product()
            if sign == "-" and term.kind == "set" and terms:
                terms[-1] = Node("difference", "", (terms[-1], term))
            else:
                terms.append(-term if sign == "-" else term)
        return terms[0] if len(terms) == 1 else Node("add", "", tuple(terms))

    def product(self) -> Node:
        factors = [self.factor()]
        while True:
            if self.next in known.TIMES:
                self.take()
                factors.append(self.signed())
            elif self.next in {"/", r"\div"} or (
                # a colon divides between numbers or letters, and not in a set builder
                self.next == ":" and self.peek(1).isalnum() and self.fences[-1:] != ["|"]
            ):
                self.take()
                factors.append(Node("pow", "", (self.signed(), number(-1))))
            elif self.next in {r"\otimes", r"\circ"}:
                name = self.take()
                factors = [Node("call", name, (product(*factors), self.factor()))]
            elif self.starts_factor():
                if mixed := self.mixed(factors[-1]):
                    factors[-1] = mixed
                elif self.next[0] in ".0123456789" and factors[-1].kind in _NUMBERS:
                    raise NoFormulaError(f"a number follows a number: {self.next!r}")
                else:
                    factors.append(self.factor())
            else:
                return factors[0] if len(factors) == 1 else product(*factors)

    def signed(self) -> Node:
        """A factor after a sign of multiplication, which may have a sign of its own."""
        if self.next in {"-", "+"}:
            return -self.signed() if self.take() == "-" else self.signed()
        return self.factor()

    def starts_factor(self) -> bool:
        token = self.next
        if token in {"|", r"\|"}:
            return token not in self.fences
        is_end = token in known.STOPS or token.startswith("\\end")
        return not is_end and not self.condition()

    def mixed(self, whole: Node) -> Node | None:
        r"""A mixed number: an integer before a fraction of integers, `3\frac12` or `3 1/2`."""
        if whole.kind != "number" or not self.peek(-1).isdigit():
            return None
        rest = self.ahead(7)
        stacked = re.match(r"\\frac (?:\{ (\d+) \}|(\d)(?=\d* )) ?(?:\{ (\d+) \}|(\d)$)", rest)
        if stacked or re.match(r"\\frac (\d\d$|\d\d |\d \d)", rest):
            return Node("add", "", (whole, self.factor()))
        if match := re.match(r"(\d+) / (\d+)(?: |$)", rest):
            self.skip(3)
            return Node("add", "", (whole, number(Fraction(int(match[1]), int(match[2]) or 1))))
        return None

    def factor(self) -> Node:
        node = self.base()
        while True:
            if self.next == "^":
                node = self.raised(node)
            elif self.next == "!":
                is_double = self.ahead(2) == "! !"
                self.skip(1 + is_double)
                node = Node("call", "factorial2" if is_double else "factorial", (node,))
            elif self.next in {r"\%", "%"}:
                self.take()
                node = node * number(Fraction(1, 100))
            elif self.next == r"\degree":
                self.take()
                node = self.degrees(node)
            else:
                return node

    def raised(self, node: Node) -> Node:
        """A power; transposing and degrees are written like one."""
        self.expect("^")
        if self.ahead(3).startswith((r"\circ", r"{ \circ }")):
            self.index()
            return self.degrees(node)
        transpose = r"(\{ )?(T|t|\\top|\\intercal|\\mathsf|\\mathrm)\b"
        if node.kind == "seq" and re.match(transpose, self.ahead(2)):
            self.index()
            if node.name != "matrix":  # a point stays as it is
                return node
            columns = zip(*(row.args for row in node.args), strict=True)
            return Node("seq", "matrix", tuple(Node("seq", "row", column) for column in columns))
        return Node("pow", "", (node, self.argument(whole=True)))

    def degrees(self, node: Node) -> Node:
        """Degrees are a unit that may be left out, but an angle where a function takes them."""
        if not self.calls:
            return node
        return product(node, Node("constant", r"\pi"), number(Fraction(1, 180)))

    def argument(self, *, whole: bool = False) -> Node:
        """What a command or a power applies to: a group, or one token; all digits with `whole`."""
        token = self.next
        if token == "{":
            self.take()
            node = self.listing()
            self.expect("}")
            return node
        if whole and token in {"-", "+"}:
            return self.signed()
        if whole and token == "(":
            return self.base()
        if token[:1].isdigit() and not whole:
            self.split(1)
        elif token.isalpha() and len(token) > 1 and token not in known.SYMBOLS | {"pi"}:
            self.split(1)
            return self.indexed(self.take())
        if token in known.STOPS:
            raise NoFormulaError(f"nothing to apply to before {token!r}")
        return self.base()

    def base(self) -> Node:
        """What stands without powers behind it."""
        token = self.take()
        if token[:1].isdigit() or (token[:1] == "." and token[1:]):
            if self.next == "_":
                self.take()
                return Node("symbol", f"{token}_{self.index()}")
            return Node("decimal" if "." in token else "number", "", (Fraction(token),))
        if token in {"(", "[", r"\{", "{"}:
            return self.bracketed(token)
        if token in known.FENCES:
            close, name = known.FENCES[token]
            self.fences.append(token)
            node = self.sums()
            self.fences.pop()
            self.expect(close)
            return Node("call", name, (node,))
        if token.isalpha():
            return self.letters(token)
        if token.startswith(("\\text", "\\operatorname")) and token.endswith("}"):
            word = token[token.index("{") + 1 : -1].strip()
            if word in known.FUNCTIONS | known.NAMED:
                return self.command(word)
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9.'-]*", word):
                raise NoFormulaError(f"{word!r} is no name")
            return self.indexed(word)
        if token.startswith("\\begin") and token.endswith("}"):
            return self.matrix(token)
        if token.startswith("\\") and token[1:].isalpha():
            return self.command(token[1:])
        raise NoFormulaError(f"does not begin with {token!r}")

    def bracketed(self, opening: str) -> Node:
        """Brackets: grouping around one formula; a point, interval or set around several."""
        closing = {"(": (")", "]"), "[": ("]", ")"), r"\{": (r"\}",), "{": ("}",)}[opening]
        self.fences.append("|" if opening == r"\{" else "")
        cycle = re.match(r"((?:\d+ )+\d+) \)", self.ahead(40)) if opening == "(" else None
        if cycle:  # a permutation: `(1 2 3)`
            self.skip(cycle.group().count(" ") + 1)
            self.fences.pop()
            entries = cycle.group(1).split(" ")
            return Node("call", "cycle", tuple(number(int(each)) for each in entries))
        items: tuple[Node, ...] = ()
        if opening != r"\{" or self.next != r"\}":
            inner = self.listing()
            if opening == r"\{" and self.next in {"|", r"\mid", ":"}:
                self.take()
                inner = Node("such", "", (inner, self.listing()))
            items = inner.args if inner.kind == "list" and inner.name == "," else (inner,)
        self.fences.pop()
        close = self.expect(*closing)
        if opening == r"\{" or (opening == "{" and len(items) > 1):
            return items[0] if items and items[0].kind == "such" else Node("set", "", items)
        if len(items) == 1:
            return items[0]
        return Node("seq", opening + close, items)

    def letters(self, token: str) -> Node:
        """A name in plain letters: a known one, or else one symbol a letter."""
        if token in known.FUNCTIONS | known.NAMED or token in {"sqrt", "binom"}:
            if self.next == "{" or (token in known.NAMED and self.next != "("):
                raise NoFormulaError(f"{token!r} lacks its backslash")
            return self.command(token)
        if (token in known.SYMBOLS | {"pi"} and len(token) > 2) or token == "pi":
            return self.command(token)
        if token.lower() in {"infinity", "infty", "inf"} or token == "oo":
            return Node("constant", r"\infty")
        if match := re.fullmatch("(sin|cos|tan|ln|log)([a-zA-Z])", token):
            self.insert(match[2])
            return self.command(match[1])
        if len(token) > 3 and not token.isupper():
            raise NoFormulaError(f"{token!r} is a word")
        if token[1:]:
            self.insert(token[1:])
        return self.indexed(token[0])

    def indexed(self, name: str) -> Node:
        """A symbol with its index and primes; a function where it is applied; a constant."""
        if name in {"e", "i"} and self.next not in {"_", "'"}:
            return Node("constant", name)
        while self.next in {"_", "'"}:
            name += f"_{{{self.index()}}}" if self.take() == "_" else "'"
        if self.ahead(6) == "^ { - 1 } (":
            self.skip(5)
            return self.applied(f"{name}^-1")
        is_function = name[0] in known.OPAQUE and name[1:2] != "_" and self.next == "("
        if is_function or re.match(r"\( (\d+|\\?[a-zA-Z]) [),]", self.ahead(3)):
            return self.applied(name)
        return Node("symbol", name)

    def applied(self, name: str) -> Node:
        """A function before its brackets."""
        self.expect("(")
        inner = self.listing()
        self.expect(")")
        return Node("call", name, inner.args if inner.kind == "list" else (inner,))

    def command(self, name: str) -> Node:
        """What follows a command, or a plain name of one."""
        if name in known.FUNCTIONS:
            return self.function(known.SAME.get(name, name))
        if name in known.NAMED:
            inner = self.base() if self.next in {"(", r"\{"} else self.argument()
            arguments = inner.args if inner.kind in {"seq", "set"} else (inner,)
            if name in {"max", "min", "gcd", "lcm"}:
                arguments = tuple(sorted(arguments, key=repr))
            return Node("call", known.SAME.get(name, name), arguments)
        if name == "frac":
            return self.argument() / self.argument()
        if name in {"zeta", "Gamma", "binom"} and self.next == "(":
            return self.applied(name if name == "binom" else f"\\{name}")
        if name == "binom":
            return Node("call", name, (self.argument(), self.argument()))
        if name == "sqrt":
            if self.next == "[":
                self.take()
                degree = self.sums()
                self.expect("]")
                return Node("call", "root", (self.argument(), degree))
            radicand = self.base() if self.next == "(" else self.argument()
            return Node("pow", "", (radicand, number(Fraction(1, 2))))
        if name in {"pi", "infty"}:
            return Node("constant", f"\\{name}")
        if name in {"emptyset", "varnothing"}:
            return Node("set")
        if name in known.ACCENTS:
            return self.indexed(f"\\{name}{{{self.index()}}}")
        if name in known.SYMBOLS:
            return self.indexed(f"\\{name}")
        raise NoFormulaError(f"unknown command \\{name}")

    def function(self, name: str) -> Node:
        r"""A function with its power, base and argument: `\sin^2 x`, `\log_2 8`, `\ln(x+1)`."""
        power = base = None
        takes_angle = name not in {"ln", "log", "lg", "exp"}
        self.calls += takes_angle
        while self.next in {"^", "_"}:
            if self.take() == "^":
                power = self.argument(whole=True)
            elif name != "log":
                raise NoFormulaError(f"an index of {name}")
            else:
                base = self.argument()
        if self.next in {"(", "{", "["}:
            node = self.base()
        else:
            factors = [self.factor()]
            last = {"(", "["} | known.FUNCTIONS
            while self.starts_factor() and self.next.removeprefix("\\") not in last:
                factors.append(self.factor())
            node = product(*factors)
        self.calls -= takes_angle
        base = number(10) if name == "lg" else base
        if name == "exp":
            applied = Node("pow", "", (Node("constant", "e"), node))
        elif base is not None:
            applied = Node("call", "log", (node, base))
        elif power == -number(1):
            return Node("call", f"arc{name}", (node,))
        else:
            applied = Node("call", "ln" if name == "log" else name, (node,))
        return Node("pow", "", (applied, power)) if power else applied

    def matrix(self, token: str) -> Node:
        """Rows of entries, as a sequence of sequences."""
        kind = re.sub(r"\W|begin", "", token)
        if not (kind.endswith("matrix") or kind == "array"):
            raise NoFormulaError(f"unknown environment {kind}")
        if kind == "array" and self.next == "{":
            self.index()
        rows: list[list[Node]] = [[]]
        while not self.next.startswith("\\end"):
            if self.next == "":
                raise NoFormulaError("a matrix is not closed")
            rows[-1].append(self.sets())
            if self.next in {"&", r"\\"}:
                rows += [[]] if self.take() == r"\\" else []
            elif not self.next.startswith("\\end"):
                raise NoFormulaError(f"an entry does not go on with {self.next!r}")
        self.take()
        rows = [row for row in rows if row]
        if not rows or len({len(row) for row in rows}) > 1:
            raise NoFormulaError("rows of different lengths")
        table = tuple(Node("seq", "row", tuple(row)) for row in rows)
        return rows[0][0] if len(rows) == len(rows[0]) == 1 else Node("seq", "matrix", table)
