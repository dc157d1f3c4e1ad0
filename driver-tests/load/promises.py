"""What was promised, and whether it was kept.

A thing is a container, a snapshot, an image: `{"tree": {path: fact}, "facts": {...}}`. An operation says what things are
once it is done (`changes`: name of the thing -> thing, or None where it is gone). Nothing is known of a path whose fact is
`LOOSE`: it was written and not synced.

Of each worker the operations acknowledged must hold, and the one under way may have been done or not, but not by half:
`stepwise` says that each change of it stands for itself, `between` are further outcomes (changes, too) that it may have when
it is cut short, `loose` are paths about which nothing is known meanwhile.
What an acknowledged operation removed (`removes`) may be there again, whole; a snapshot under the name that its container
has by then (`renames`: the old name and the new one).
"""

LOOSE = "loose"


class Operation:
    """One command: `number`, `worker`, what it does in words, and what it promises."""

    def __init__(self, number, worker, what, changes=None, removes=(), loose=(), stepwise=False, between=(), renames=()):
        self.number, self.worker, self.what, self.changes = number, worker, what, changes or {}
        self.removes, self.loose, self.stepwise, self.between = list(removes), list(loose), stepwise, list(between)
        self.renames = list(renames)

    def to_json(self):
        return vars(self)

    @classmethod
    def from_json(cls, fields):
        return cls(**fields)


def differences(wanted, found, loose=()):
    """In words, what of a thing isn't as it should be. Either may be None."""
    if wanted is None or found is None:
        if wanted is found:
            return []
        return ["it is there" if wanted is None else "it isn't there"]
    words = [f"{name} is {found['facts'].get(name)!r}, expected {value!r}"
             for name, value in wanted["facts"].items() if found["facts"].get(name) != value]
    one, other = wanted["tree"], found["tree"]
    for path in sorted(one.keys() | other.keys()):
        if path in loose or one.get(path) == LOOSE:
            continue
        if one.get(path) != other.get(path):
            words.append(f"{path} is {other.get(path, 'missing')}, expected {one.get(path, 'nothing')}")
    return words


def after(operations):
    """What there is when these are done, and what they have removed: its last shape."""
    things, gone = {}, {}
    for operation in operations:
        for name in operation.removes:
            gone[name] = things.get(name)
        gone |= renamed(gone, operation)
        things.update(operation.changes)
    return {name: thing for name, thing in things.items() if thing is not None}, gone


def renamed(gone, operation):
    """What is gone of a container's snapshots, by the name that the operation gives it."""
    if not operation.renames:
        return {}
    old, new = (f"snapshot {name}@" for name in operation.renames)
    return {new + name.removeprefix(old): thing for name, thing in gone.items() if name.startswith(old)}


def by_worker(operations):
    """The operations of each worker, in order."""
    found = {}
    for operation in operations:
        found.setdefault(operation.worker, []).append(operation)
    return found


def promising(operations):
    """The numbers of those of one worker that promise what wasn't so before, and not merely that something is gone."""
    found, things = set(), {}
    for operation in operations:
        if any(thing is not None and differences(thing, things.get(name)) for name, thing in operation.changes.items()):
            found.add(operation.number)
        things.update(operation.changes)
    return found


def judge(acknowledged, under_way, found):
    """What isn't as one worker was promised: `found` are its things. Complaints in words, and what came back."""
    before, gone = after(acknowledged)
    if under_way:
        gone |= renamed(gone, under_way)
    changes = under_way.changes if under_way else {}
    loose = under_way.loose if under_way else ()
    complaints, back = [], []

    def complain(name, words):
        shown = "; ".join(words[:4]) + (f"; and {len(words) - 4} more" if len(words) > 4 else "")
        last = next((o for o in reversed(acknowledged) if name in o.changes), None)
        promise = f", promised by {last.number} ({last.what})" if last else ""
        meanwhile = f", under way {under_way.number} ({under_way.what})" if under_way else ""
        complaints.append(f"{name}: {shown}{promise}{meanwhile}")

    outcomes = [{}, changes, *(under_way.between if under_way else ())]
    # What of each outcome isn't so.
    wrong = [{} for _ in outcomes]
    for name in sorted(before.keys() | changes.keys() | found.keys()):
        then = differences(before.get(name), found.get(name), loose)
        if then and name not in before and name in gone and not differences(gone[name], found.get(name), loose):
            back.append(name)
        elif name in changes:
            words = [differences(outcome.get(name, before.get(name)), found.get(name), loose) for outcome in outcomes]
            if under_way.stepwise:
                if all(words):
                    complain(name, then)
            else:
                for wrongs, said in zip(wrong, words, strict=True):
                    if said:
                        wrongs[name] = said
        elif then:
            complain(name, then)
    if all(wrong):
        # Of the outcomes the nearest one.
        for name, words in min(wrong, key=lambda wrongs: sum(map(len, wrongs.values()))).items():
            complain(name, words)
    return complaints, back
