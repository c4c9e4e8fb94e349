r"""Answers next to references, in groups: the same value written otherwise, and near misses.

Every group is a way in which models write answers or go wrong; its numbers and letters are drawn
with a fixed seed, so that the pairs are the same everywhere.
"""

import random
from collections.abc import Callable, Iterator
from math import comb, factorial
from typing import NamedTuple


class Pair(NamedTuple):
    """A reference, an answer to it, and whether that is right."""

    group: str
    reference: str
    answer: str
    is_right: bool


Rows = Iterator[tuple[str, str, bool]]
Draw = random.Random


def pairs(copies: int = 10, seed: int = 0) -> list[Pair]:
    """The pairs of all groups, each pattern of a group so often with other numbers."""
    found: dict[Pair, None] = {}
    for group, rows in GROUPS.items():
        draw = random.Random(f"{seed} {group}")
        for _ in range(copies):
            found |= dict.fromkeys(Pair(group, *row) for row in rows(draw))
    return list(found)


def _exact(draw: Draw) -> Rows:
    n, k = draw.randint(67, 400), draw.randint(2, 40)
    yield f"2^{{{n}}}-{k}", f"2^{{{n}}}", False
    yield f"2^{{{n}}}-{k}", str(2**n - k), True
    yield f"2^{{{n}}}-{k}", str(2**n - k + 1), False
    yield rf"1-\frac{{1}}{{2^{{{n}}}}}", "1", False
    yield rf"1-\frac{{1}}{{2^{{{n}}}}}", rf"\frac{{2^{{{n}}}-1}}{{2^{{{n}}}}}", True
    yield f"{n}!", f"{n}!-1", False
    yield f"{n}!", rf"{n}\cdot {n - 1}!", True
    yield rf"\binom{{{n}}}{{{k}}}", rf"\binom{{{n}}}{{{k}}}+1", False
    yield rf"\binom{{{n}}}{{{k}}}", rf"\binom{{{n}}}{{{n - k}}}", True
    yield rf"\binom{{{n}}}{{{k}}}", str(comb(n, k)), True
    yield f"{k}!", str(factorial(k)), True
    yield rf"\frac{{2^{{{n}}}+1}}{{3\cdot2^{{{n + 1}}}}}", r"\frac16", False
    yield rf"3^{{{n}}}", rf"9\cdot 3^{{{n - 2}}}", True
    yield rf"2^{{{n}}}\cdot {k}!", rf"2^{{{n}}}\cdot {k + 1}!", False
    yield rf"\pi+10^{{-{n}}}", r"\pi", False
    yield rf"\sqrt{{2}}\cdot 2^{{{n}}}", rf"2^{{{n}}}\sqrt2+1", False


def _radicals(draw: Draw) -> Rows:
    n, k, s = draw.choice([2, 3, 5, 7, 11, 13]), draw.randint(2, 9), draw.randint(2, 30)
    yield rf"\sqrt{{{n * k * k}}}", rf"{k}\sqrt{n}" if n < 10 else rf"{k}\sqrt{{{n}}}", True
    yield rf"\sqrt{{{n * k * k}}}", rf"{k + 1}\sqrt{{{n}}}", False
    yield rf"\frac{{{k}}}{{\sqrt{{{n}}}}}", rf"\frac{{{k}\sqrt{{{n}}}}}{{{n}}}", True
    yield rf"{s}+{k}\sqrt{{{n}}}", rf"{s}-{k}\sqrt{{{n}}}", False
    yield rf"{s}+{k}\sqrt{{{n}}}", rf"{k}\sqrt{{{n}}} + {s}", True
    yield rf"{s} \pm \sqrt{{{n}}}", rf"{s}+\sqrt{{{n}}}, {s}-\sqrt{{{n}}}", True
    yield rf"{s}+\sqrt{{{n}}}, {s}-\sqrt{{{n}}}", rf"x = {s} \pm \sqrt{{{n}}}", True
    yield rf"{s} \pm \sqrt{{{n}}}", rf"{s}+\sqrt{{{n}}}", False
    yield rf"\sqrt[3]{{{n}}}", rf"{n}^{{1/3}}", True
    yield rf"\frac{{-{s}+\sqrt{{{n}}}}}{{2}}", rf"\frac{{\sqrt{{{n}}}-{s}}}{{2}}", True
    yield rf"\frac{{-{s}+\sqrt{{{n}}}}}{{2}}", rf"\frac{{\sqrt{{{n}}}+{s}}}{{2}}", False


def _complex(draw: Draw) -> Rows:
    a, b = draw.randint(2, 40), draw.randint(2, 40)
    yield f"{a} - {b}i", f"z = {a}-{b}i", True
    yield f"{a} - {b}i", f"{a}+{b}i", False
    yield f"{a} - {b}i", rf"{a}-{b}\mathrm{{i}}", True
    yield f"{a} - {b}i", f"-{b}i + {a}", True
    yield f"{a}i,-{a}i", f"x=\\pm {a}i", True
    yield f"{a}i,-{a}i", f"z = -{a}i, z = {a}i", True
    yield f"{a}i", f"-{a}i", False
    yield f"{a}i", rf"{a}\sqrt{{-1}}", True
    yield rf"{a} e^{{i\pi/4}}", rf"{a}e^{{-i\pi/4}}", False
    yield rf"{a}e^{{i\pi}}", f"-{a}", True


def _constants(draw: Draw) -> Rows:
    a, b = draw.randint(2, 30), draw.randint(2, 30)
    yield rf"\frac{{{a}}}{{e}}", rf"\frac{{{a}}}{{\mathrm{{e}}}}", True
    yield rf"\frac{{{a}}}{{e}}", rf"{a}e^{{-1}}", True
    yield rf"\frac{{{a}}}{{e}}", rf"{a}e", False
    yield rf"\frac{{\pi}}{{{b % 9 + 1}}}", rf"\frac\pi{b % 9 + 1}", True
    yield rf"\dfrac{{\pi}}{{{b}}}", f"pi/{b}", True
    yield rf"\dfrac{{\pi}}{{{b}}}", f"π/{b}", True
    yield rf"\dfrac{{\pi}}{{{b}}}", f"{b}/pi", False
    yield rf"{a}\pi", f"{a * 3.14159265:.2f}", False
    yield rf"\gamma+{a}", f"{a}", False
    yield rf"\gamma^{{2}}-{a}", rf"\gamma^2-{a}", True
    yield rf"\gamma_{{{a}}}", rf"\gamma_{{{a + 1}}}", False
    yield rf"{a}\alpha+\beta", rf"\beta+{a}\alpha", True
    yield rf"{a}\alpha+\beta", rf"\alpha+{a}\beta", False


def _logarithms(draw: Draw) -> Rows:
    n, k = draw.randint(2, 40), draw.randint(2, 9)
    yield rf"\log {n}", rf"\ln {n}", True
    yield rf"\log_{{10}} {n}", rf"\ln {n}", False
    yield rf"\ln {n}", f"ln({n})", True
    yield rf"\ln({n}x)", rf"\log({n} x)", True
    yield rf"{k}\ln {n}", rf"\ln({n}^{k})", True
    yield rf"\log_{{{k}}} {n}", rf"\frac{{\ln {n}}}{{\ln {k}}}", True
    yield rf"\log_{k} x", rf"\log_{k + 1} x", False
    yield rf"\ln({n}) + {k}", rf"\ln({n + k})", False


def _regions(draw: Draw) -> Rows:
    a = draw.randint(-20, 20)
    b = a + draw.randint(1, 20)
    yield rf"(-\infty,{a})\cup({b},\infty)", rf"x<{a} \text{{ or }} x>{b}", True
    yield rf"(-\infty,{a})\cup({b},\infty)", rf"x<{a} \text{{ or }} x\ge {b}", False
    yield rf"(-\infty,{a})\cup({b},\infty)", rf"({b},\infty) \cup (-\infty,{a})", True
    yield rf"({a},\infty)", rf"\{{x \mid x>{a}\}}", True
    yield rf"({a},\infty)", rf"\{{x \in \mathbb{{R}} : x>{a}\}}", True
    yield rf"({a},\infty)", rf"\{{x \mid x\ge {a}\}}", False
    yield f"p > {a}", rf"\{{p: p>{a}\}}", True
    yield f"p > {a}", f"q > {a}", False
    yield f"p > {a}", f"p < {a}", False
    yield f"p > {a}", f"{a} < p", True
    yield f"[{a},{b}]", rf"{a} \le x \le {b}", True
    yield f"[{a},{b}]", f"{a} <= x <= {b}", True
    yield f"[{a},{b}]", f"({a},{b}]", False
    yield f"[{a},{b})", rf"x \in [{a},{b})", True
    yield rf"\mathbb{{R}} \setminus \{{{a}\}}", rf"(-\infty,{a})\cup({a},\infty)", True
    yield rf"\mathbb{{R}} \setminus \{{{a}\}}", rf"x \ne {a}", True
    yield rf"\mathbb{{R}} \setminus \{{{a}\}}", r"\mathbb{R}", False
    yield rf"[{a}, \infty)", rf"x \geq {a}", True
    yield rf"[{a}, \infty)", rf"x \geq {a + 1}", False


def _sets(draw: Draw) -> Rows:
    a, b, c = draw.sample(range(-30, 60), 3)
    yield f"{a}, {b}, {c}", rf"\{{{c}, {a}, {b}\}}", True
    yield f"{a}, {b}, {c}", f"{a}, {b}", False
    yield f"{a}, {b}", f"x = {a} or x = {b}", True
    yield f"{a}, {b}", rf"x_1 = {b}, x_2 = {a}", True
    yield f"{a}, {b}", rf"x = {a} \text{{ and }} x = {c}", False
    yield rf"\{{{a}, {b}\}}", f"{b}, {a}", True
    yield rf"\{{{a}, {b}\}}", f"{a}, {b}, {c}", False
    yield f"({a}, {b})", f"({b}, {a})", False
    yield f"({a}, {b})", rf"\left({a}, {b}\right)", True
    yield f"({a}, {b})", f"x = {a}, y = {b}", True
    yield f"({a}, {b})", f"x = {b}, y = {a}", False
    yield f"({a}, {b})", f"(x, y) = ({a}, {b})", True
    yield r"\emptyset", r"\{\}", True
    yield f"({a}, {b}, {c})", f"({a}, {b})", False


def _matrices(draw: Draw) -> Rows:
    a, b, c = draw.sample(range(1, 40), 3)
    column = rf"\begin{{pmatrix}}{a}\\{b}\end{{pmatrix}}"
    yield column, rf"\begin{{pmatrix}} {a} \\[6pt] {b} \end{{pmatrix}}", True
    yield column, rf"\begin{{bmatrix}} {{{a}}}\\{{{b}}} \end{{bmatrix}}", True
    yield column, rf"\begin{{pmatrix}}{b}\\{a}\end{{pmatrix}}", False
    yield column, rf"\left(\begin{{array}}{{c}} {a} \\ {b} \end{{array}}\right)", True
    yield column, f"({a},{b})", True
    yield column, f"({a},{b},{c})", False
    third = rf"\begin{{pmatrix}}-{a}/3\\{b}/3\\{c}/3\end{{pmatrix}}"
    yield third, rf"\frac13\begin{{pmatrix}}-{a}\\{b}\\{c}\end{{pmatrix}}", True
    yield third, rf"\frac13\begin{{pmatrix}}{a}\\{b}\\{c}\end{{pmatrix}}", False
    square = rf"\begin{{pmatrix}}{a}&{b}\\{c}&1\end{{pmatrix}}"
    yield square, rf"\begin{{bmatrix}}{a}&{b}\\{c}&1\end{{bmatrix}}", True
    yield square, rf"\begin{{pmatrix}}{a}&{c}\\{b}&1\end{{pmatrix}}", False


def _thousands(draw: Draw) -> Rows:
    n, k = draw.randint(10, 99), draw.randint(100, 999)
    yield rf"\frac{{{n}{k}}}{{\pi}}", rf"\frac{{{n}{{,}}{k}}}{{\pi}}", True
    yield rf"{n}{k}\pi", rf"{n},{k}\pi", True
    for space in (" ", "~", r"\ ", r"\,", "{,}", ","):
        yield f"{n}{k}", f"{n}{space}{k}", True
    yield f"{n}{k}", f"{n}.{k}", False
    yield f"{n}{k}", f"{n} {k + 1}", False
    yield f"{n}{k}", f"{n},{k},000", False


def _wrappers(draw: Draw) -> Rows:
    n, m = draw.randint(10, 900), draw.randint(3, 40)
    wraps = (
        r"\boldsymbol{%s}", r"\mathbf{%s}", r"\textcolor{blue}{%s}", r"\color{red}{%s}",
        r"{\color{red} %s}", r"\underline{%s}", r"\begin{aligned}%s\end{aligned}", r"\text{%s}",
        r"\displaystyle %s", r"\bm{%s}", r"\mathrm{%s}", r"$%s$", r"\(%s\)", "**%s**", r"{%s}",
    )  # fmt: skip
    for wrap in wraps:
        yield str(n), wrap % n, True
    for wrap in draw.sample(wraps, 4):
        yield str(n), wrap % (n + 1), False
        yield (
            rf"\frac{{{n}}}{{{m}}}",
            wrap.replace(r"\text{", r"\textbf{") % rf"\frac{{{n}}}{{{m}}}",
            True,
        )
    yield str(n), rf"{n}\\", True
    yield rf"x^2+{n}", r"\begin{aligned} f(x) &= x^2+%s \end{aligned}" % n, True


def _words(draw: Draw) -> Rows:
    for word in ("No", "Yes", "True", "False", "even", "Evelyn"):
        for dress in (r"\text{%s.}", "%s.", r"\textbf{%s}", "%s"):
            yield word, dress % draw.choice([word, word.lower(), word.upper()]), True
    yield "No", "Yes", False
    yield r"\text{even}", r"\text{odd}", False
    yield "east", "seat", False
    yield r"\text{No solution}", "None", True
    yield "True", draw.choice(["1", "yes", "T"]), False


def _bases(draw: Draw) -> Rows:
    n, base = draw.randint(20, 66), draw.choice([7, 8, 9])
    text = "".join(str(n // base**i % base) for i in (2, 1, 0)).lstrip("0")
    yield f"{text}_{base}", f"({text})_{base}", True
    yield f"{text}_{base}", rf"{text}_{{{base}}}", True
    yield f"{text}_{base}", rf"{text}\text{{ base }}{base}", True
    yield f"{text}_{base}", f"{text} base {base}", True
    yield f"{text}_{base}", text, True
    yield f"{text}_{base}", f"{text}_{base + 1}", False
    yield f"{text}_{base}", f"{n}", False
    yield f"{text}_{base}", f"{text}1_{base}", False


def _spellings(draw: Draw) -> Rows:
    n, k = draw.randint(2, 30), draw.randint(2, 9)
    yield r"\mathbb{Z}_{%d}" % n, r"\mathbb Z_{%d}" % n, True
    yield r"\mathbb{Z}_{%d}" % n, r"\mathbb{Z}_{%d}" % (n + 1), False
    yield r"\mathbb{Z}", draw.choice([r"\mathbb{Q}", r"\mathbb{N}", "Z^2"]), False
    yield r"2^{\aleph_0}", r"2^{\aleph_{0}}", True
    yield r"2^{\aleph_0}", r"\aleph_0", False
    yield rf"y^{{\prime}}+{n} y={k}", f"y'+{n}y={k}", True
    yield rf"y^{{\prime}}+{n} y={k}", f"y'-{n}y={k}", False
    yield "MR=SRMC", r"\text{MR}=\text{SRMC}", True
    yield rf"f(x) = x + {n}", rf"f(x) = x+{n} \text{{ for all }} x \in \mathbb{{R}}", True
    yield rf"f(x) = x + {n}", rf"f(x) = x-{n} \text{{ for all }} x \in \mathbb{{R}}", False
    yield rf"f(x) = x + {n}", rf"x + {n}", True
    yield rf"{n}k\pi", rf"{n}\pi k,\ k \in \mathbb{{Z}}", True
    yield rf"P(x) = x^2+{n}x", rf"x(x+{n})", True


def _units(draw: Draw) -> Rows:
    n = draw.randint(2, 300)
    for one, other in draw.sample(
        [("m/s", "km/h"), ("square meters", "square feet"), ("cm", "cm^2"), ("m", "km"),
         ("hours", "minutes"), ("kg", "g"), ("J", "N"), ("mol", "mmol"), ("Pa", "kPa")], 4,
    ):  # fmt: skip
        yield rf"{n} \text{{ {one}}}", rf"{n} \text{{ {other}}}", False
        yield rf"{n} \text{{ {one}}}", f"{n}", True
        yield f"{n}", rf"{n}\,\mathrm{{{one}}}", True
    yield rf"\${n}", f"€{n}", False
    yield rf"\${n}", rf"{n} \text{{ cents}}", False
    yield rf"\${n}", rf"{n} \text{{ dollars}}", True
    yield rf"{n}^\circ", rf"{n}\text{{ radians}}", False
    yield rf"{n}^\circ", rf"{n}\degree", True
    yield rf"{n}^\circ", rf"{n}\text{{ degrees}}", True
    yield f"{n}.8", rf"{n}.8\,\mathrm{{m\,s^{{-2}}}}", True
    yield f"{n}.8", rf"{n}.8 \frac{{\text{{m}}}}{{\text{{s}}^2}}", True
    yield rf"{n}.8\ \text{{m/s}}^2", rf"{n}.8 \frac{{\text{{m}}}}{{\text{{s}}^2}}", True
    yield f"{n}.71", rf"{n}.71\ \text{{cm}}^3/\text{{mole}}", True
    yield r"12\text{ m}^2", r"12 \text{ square meters}", True
    yield f"{n}d", f"{n}m", False


def _letters(draw: Draw) -> Rows:
    right, wrong = draw.sample("ABCDE", 2)
    for dress in ("%s", "(%s)", "%s.", r"\text{%s}", r"\textbf{(%s)}", "%s) 12", "option %s"):
        yield right, dress % right, True
        yield right, dress % wrong, False
    yield right, f"{right} or choice {wrong}", False
    yield right, f"{wrong} or choice {right}", False
    yield right, "A) 5 B) 6 C) 7 D) 8 E) 9", False
    yield right, f"{right}, {wrong}", False


def _plain(draw: Draw) -> Rows:
    n = draw.randint(2, 30)
    yield rf"\sin {n}x", f"sin({n}x)", True
    yield rf"\sin {n}x", f"cos({n}x)", False
    yield f"x^{{{n}}}", f"x**{n}", True
    yield f"x^{{{n}}}", f"x*{n}", False
    yield rf"\sqrt{{{n}}}", f"sqrt({n})", True
    yield rf"\sqrt{{{n}}}", f"√{n}", True
    yield rf"{n}\theta", f"{n}*theta", True
    yield rf"\frac{{x+{n}}}{{x-{n}}}", f"(x+{n})/(x-{n})", True
    yield rf"\frac{{x+{n}}}{{x-{n}}}", f"x+{n}/x-{n}", False
    yield rf"e^{{-{n}x}}", f"exp(-{n}*x)", True
    yield r"\infty", "infinity", True
    yield rf"{n} \cdot 10^{{-3}}", f"{n}e-3", True
    yield r"\tan^2 x", "tan(x)^2", True


def _algebra(draw: Draw) -> Rows:
    a, b = draw.randint(2, 12), draw.randint(2, 12)
    yield f"(x+{a})(x-{b})", f"x^2+{a - b}x-{a * b}".replace("+-", "-"), True
    yield f"(x+{a})(x-{b})", f"x^2+{a - b}x+{a * b}".replace("+-", "-"), False
    yield r"\sin^2 x", r"1-\cos^2 x", True
    yield rf"\sin {a}x", rf"\sin {a}y", False
    yield rf"{a}x^2+{b}", rf"{b}+{a}x^2", True
    yield rf"{a}x^2+{b}", rf"{a}x^2-{b}", False
    yield rf"\frac{{x}}{{{a}}}", rf"\frac{{1}}{{{a}}}x", True
    yield rf"|x-{a}|", f"x-{a}", False
    yield rf"y = {a}x+{b}", f"{a}x - y + {b} = 0", True
    yield rf"y = {a}x+{b}", f"y = {a}x-{b}", False
    yield rf"x^2+y^2={a * a}", rf"x^2+y^2={a}", False
    yield rf"x^2+y^2={a * a}", rf"{b}x^2+{b}y^2={b * a * a}", True
    yield rf"\frac{{{a}}}{{1+x}}", rf"{a}(1+x)^{{-1}}", True
    yield rf"C_1 e^{{{a}t}}", rf"C_2 e^{{{a}t}}", False
    yield f"x={a}", f"x={a + b}={a}", False


def _numbers(draw: Draw) -> Rows:
    a, b = draw.randint(1, 60), draw.choice([2, 4, 5, 8, 16, 20, 25])
    yield rf"\frac{{{a}}}{{{b}}}", str(a / b), True
    yield rf"\frac{{{a}}}{{{b}}}", rf"\frac{{{3 * a}}}{{{3 * b}}}", True
    yield rf"\frac{{{a}}}{{{b}}}", rf"\frac{{{a + 1}}}{{{b}}}", False
    yield rf"\frac{{{a}}}{{{b}}}", rf"-\frac{{{a}}}{{{b}}}", False
    yield rf"{a}\frac{{1}}{{{b}}}", rf"\frac{{{a * b + 1}}}{{{b}}}", True
    yield rf"{a}\frac{{1}}{{{b}}}", rf"\frac{{{a}}}{{{b}}}", False
    yield rf"\frac{{{a}}}{{7}}", f"{a / 7:.3f}", a % 7 == 0
    yield rf"{a}\%", f"{a / 100}", True
    yield f"{a}", rf"{a}\%", False
    yield f"{a}", f"n = {a}", True
    yield f"{a}", f"{a}.0", True
    yield f"{a}", f"{a}.01", False


GROUPS: dict[str, Callable[[Draw], Rows]] = {
    "exact numbers": _exact,
    "radicals": _radicals,
    "complex numbers": _complex,
    "constants": _constants,
    "logarithms": _logarithms,
    "regions": _regions,
    "sets and points": _sets,
    "matrices": _matrices,
    "thousands": _thousands,
    "wrappers": _wrappers,
    "words": _words,
    "bases": _bases,
    "spellings": _spellings,
    "units": _units,
    "choices": _letters,
    "plain notation": _plain,
    "algebra": _algebra,
    "numbers": _numbers,
}
"""Name of a group -> its pairs, from a source of random numbers."""
