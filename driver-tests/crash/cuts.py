"""Where the power is cut, and what of the writes under way is on the disk then.

Durable is what was written before a flush that was done, and what was durable by itself (FUA). Of what came later each block
may be there or not, also of one write: disks promise no more than whole sectors.
"""

import random
from collections import namedtuple

# How much of a write is there or isn't.
BLOCK = 4096

# The entries before `position` had gone out, those before `safe` are durable; `keep` is the part of the others that is there.
Cut = namedtuple("Cut", "number position safe keep")


def last_flush(entries, position):
    """Behind the last flush before a position."""
    for index in range(position - 1, -1, -1):
        if entries[index].kind == "flush":
            return index + 1
    return 0


def choose(entries, count, seed):
    """That many cuts, in the order of the log: a third before a flush, a third behind an acknowledgement, a third anywhere."""
    rng = random.Random(f"{seed} cuts")
    flushes = [index for index, entry in enumerate(entries) if entry.kind == "flush"]
    marks = [index + 1 for index, entry in enumerate(entries) if entry.kind == "mark" and acknowledges(entry.number)]
    anywhere = range(len(entries) + 1)
    places = [rng.choice((flushes, marks, anywhere)[turn % 3] or anywhere) for turn in range(count)]
    cuts = []
    for number, position in enumerate(sorted(places)):
        # Nothing of it is what shows a forgotten flush, half of it what shows a wrong order.
        keep = rng.choice((0.5, 0.5, 0.5, 0, 0, 1))
        cuts.append(Cut(number, position, last_flush(entries, position), keep))
    return cuts


def choose_lies(entries, promising, count, seed):
    """Cuts of a disk that lies: right behind an acknowledgement nothing is there that was written since the operation began,
    although it was flushed. `promising` are the numbers of operations that promise something new."""
    rng = random.Random(f"{seed} lies")
    starts, flushed, found = {}, 0, []
    for index, entry in enumerate(entries):
        if entry.kind == "flush":
            flushed = index
        elif entry.kind == "mark" and not acknowledges(entry.number):
            starts[operation(entry.number)] = index
        elif entry.kind == "mark" and operation(entry.number) in promising:
            start = starts[operation(entry.number)]
            if flushed > start:
                found.append((index + 1, last_flush(entries, start)))
    chosen = sorted(rng.sample(found, min(count, len(found))))
    return [Cut(number, position, safe, 0) for number, (position, safe) in enumerate(chosen)]


def pieces(write):
    """The blocks of a write: (offset, length, data) each, with the device's own borders."""
    offset, end = write.offset, write.offset + write.length
    while offset < end:
        length = min(BLOCK - offset % BLOCK, end - offset)
        data = None if write.data is None else write.data + offset - write.offset
        yield write._replace(offset=offset, length=length, data=data)
        offset += length


def survivors(entries, cut, seed):
    """What of the writes that aren't safe is there, in order."""
    rng = random.Random(f"{seed} survivors {cut.position} {cut.number}")
    for entry in entries[cut.safe:cut.position]:
        if entry.kind != "write":
            continue
        if entry.fua or cut.keep == 1:
            yield entry
        elif cut.keep:
            # A write is mostly there or not; one in four is torn.
            if rng.random() < 0.25:
                yield from (piece for piece in pieces(entry) if rng.random() < cut.keep)
            elif rng.random() < cut.keep:
                yield entry


# An operation writes a mark when it begins and one when it is acknowledged.


def beginning(number):
    return 2 * number


def acknowledgement(number):
    return 2 * number + 1


def acknowledges(mark):
    return mark % 2 == 1


def operation(mark):
    return mark // 2


def known(entries, position):
    """The operations that were acknowledged before a position, and those that were under way."""
    begun, done = set(), set()
    for entry in entries[:position]:
        if entry.kind == "mark":
            (done if acknowledges(entry.number) else begun).add(operation(entry.number))
    return done, begun - done
