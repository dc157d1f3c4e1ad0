"""What came out: the judge of a guest's words, the table, and JUnit XML."""

import re
from dataclasses import dataclass, field
from xml.etree import ElementTree

# What XML 1.0 can't hold.
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass
class Outcome:
    """What a step came to: `shown` in the table, `failed` for the exit status, `said` for whoever looks into it."""

    shown: str
    failed: bool
    said: str
    seconds: int = 0
    passed: int = 0
    # (name, whether it passed) of each test.
    tests: list = field(default_factory=list)
    # The kernel lacks what the cell needs, as the matrix says.
    lacking: bool = False


def judge(step, output):
    """The outcome of a step, from what the guest said on its second serial line."""
    _, begun, rest = output.partition(f"@@ begin {step.name}\n")
    said, ended, tail = rest.partition(f"@@ end {step.name} ")
    if not begun:
        return Outcome("not run", True, "the guest ended before")
    tests = [(name, how == "ok") for name, how in re.findall(r"^test (\S+)(?: - should panic)? \.\.\. (ok|FAILED)$", said, re.M)]
    if not ended:
        return Outcome("died", True, said, tests=tests)
    status, seconds = (int(number) for number in tail.split(maxsplit=2)[:2])
    counts = re.findall(r"^test result: \w+\. (\d+) passed; (\d+) failed", said, re.MULTILINE)
    passed, failed = (sum(int(count[i]) for count in counts) for i in (0, 1))
    if step.sign is not None:
        lacking = status != 0 and passed == 0 and failed == 1 and step.sign in said
        return Outcome("n/a" if lacking else "not n/a", not lacking, said, seconds, passed, tests, lacking)
    if status == 0 and passed > 0 and failed == 0:
        return Outcome(f"{passed} in {seconds} s", False, said, seconds, passed, tests)
    why = {137: "killed"}.get(status, "no test" if passed + failed == 0 else f"{failed} of {passed + failed} failed")
    return Outcome(f"{why}, {seconds} s", True, said, seconds, passed, tests)


def summary(outcomes):
    """A cell of the table: the tests and seconds of all of its steps, or what is wrong with the first that failed."""
    wrong = [outcome.shown for outcome in outcomes if outcome.failed]
    if wrong:
        return wrong[0].upper()
    if any(outcome.lacking for outcome in outcomes):
        return "n/a"
    return f"{sum(outcome.passed for outcome in outcomes)} in {sum(outcome.seconds for outcome in outcomes)} s"


def table(kernels, cells, found):
    """Kernels x cells. `found`: by (kernel, cell), what its steps came to."""
    rows = [["", *cells]]
    rows += [[kernel, *(summary(found[kernel, cell]) for cell in cells)] for kernel in kernels]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("   " + "  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows)


def junit(results, retries):
    """JUnit XML: a suite for each boot and step, a case for each test. `results`: (boot, [(step, outcome)])."""
    root = ElementTree.Element("testsuites", name="vmtest", retries=str(retries))
    for boot, outcomes in results:
        for step, outcome in outcomes:
            name = f"{boot.name}.{step.cell}.{step.binary}"
            cases = [(test, passed) for test, passed in outcome.tests]
            # A step that ends without one of its tests failing has failed, too.
            if outcome.failed and all(passed for _, passed in cases):
                cases.append((outcome.shown, False))
            suite = ElementTree.SubElement(
                root, "testsuite", name=name, tests=str(len(cases)), time=str(outcome.seconds),
                failures=str(0 if outcome.lacking else sum(not passed for _, passed in cases)),
                skipped=str(len(cases) if outcome.lacking else 0),
            )
            for test, passed in cases:
                case = ElementTree.SubElement(suite, "testcase", classname=name, name=test)
                if outcome.lacking:
                    ElementTree.SubElement(case, "skipped", message=f"the kernel lacks it: {step.sign}")
                elif not passed:
                    ElementTree.SubElement(case, "failure", message=outcome.shown)
            if outcome.failed:
                ElementTree.SubElement(suite, "system-out").text = NOT_XML.sub("\ufffd", outcome.said)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
