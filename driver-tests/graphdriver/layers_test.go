package graphdriver

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"math/rand"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/daemon/graphdriver"
	"github.com/docker/docker/pkg/stringid"
)

var long = strings.Repeat("long", 40)

// Of what layers have been seen to hold, each once. No directory is left to be made up, with a time of its own.
func everything() []entry {
	member := func(e entry, change func(*tar.Header)) entry {
		change(&e.Header)
		return e
	}
	noise := make([]byte, 300_000)
	rand.New(rand.NewSource(7)).Read(noise)
	return []entry{
		dir("usr"), dir("usr/bin"),
		member(file("usr/bin/tool", string(noise)), func(h *tar.Header) { h.Mode, h.Uid, h.Gid = 0o4755, 1, 2 }),
		member(link("usr/bin/tool-again", "usr/bin/tool", tar.TypeLink), func(h *tar.Header) { h.Mode, h.Uid, h.Gid = 0o4755, 1, 2 }),
		link("bin", "usr/bin", tar.TypeSymlink),
		member(file("usr/bin/ping", "ping"), func(h *tar.Header) {
			h.Format = tar.FormatPAX
			h.PAXRecords = map[string]string{
				"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
			}
		}),
		member(dir("tmp"), func(h *tar.Header) { h.Mode = 0o1777 }),
		member(file("empty", ""), func(h *tar.Header) {
			h.Format, h.ModTime = tar.FormatPAX, time.Unix(1_600_000_000, 123_456_789)
		}),
		member(entry{Header: tar.Header{Name: "null", Typeflag: tar.TypeChar}}, func(h *tar.Header) { h.Devmajor, h.Devminor = 1, 3 }),
		member(entry{Header: tar.Header{Name: "fifo", Typeflag: tar.TypeFifo}}, func(h *tar.Header) { h.Mode = 0o600 }),
		dir(long), dir("pax"),
		member(file(long+"/name", "gnu"), func(h *tar.Header) { h.Format = tar.FormatGNU }),
		member(file("pax/"+strings.Repeat("n", 200), "pax"), func(h *tar.Header) { h.Format, h.Uid = tar.FormatPAX, 3_000_000 }),
	}
}

func testApplyTree(t *testing.T) {
	d := driver(t)
	base := layer(t, d, "", everything()...)
	found := tree(t, get(t, d, base))
	for name, wanted := range map[string]string{
		"/usr/bin":                         "drwxr-xr-x 0:0 1500000000",
		"/usr/bin/ping":                    "-rw-r--r-- 0:0 1500000000 4 ",
		"/usr/bin/tool":                    "urwxr-xr-x 1:2 1500000000 300000 ",
		"/bin":                             "Lrwxrwxrwx 0:0 1500000000 -> usr/bin",
		"/tmp":                             "dtrwxrwxrwx 0:0 1500000000",
		"/empty":                           "-rw-r--r-- 0:0 1600000000 0 ",
		"/null":                            "Dc--------- 0:0 1500000000 1,3",
		"/fifo":                            "prw------- 0:0 1500000000",
		"/" + long + "/name":               "-rw-r--r-- 0:0 1500000000 3 ",
		"/pax/" + strings.Repeat("n", 200): "-rw-r--r-- 3000000:0 1500000000 3 ",
	} {
		if !strings.HasPrefix(found[name], wanted) {
			t.Errorf("%s is %q, has to begin with %q", name, found[name], wanted)
		}
	}
	for name, end := range map[string]string{
		"/usr/bin/tool":       "2 links, as /usr/bin/tool",
		"/usr/bin/tool-again": "2 links, as /usr/bin/tool",
		"/usr/bin/ping":       "capability 0100000200200000000000000000000000000000",
	} {
		if !strings.HasSuffix(found[name], end) {
			t.Errorf("%s is %q, has to end with %q", name, found[name], end)
		}
	}

	child := layer(t, d, base, dir("usr"), file("usr/.wh.bin", ""), dir("pax"), file("pax/.wh..wh..opq", ""), file("pax/new", "new"))
	found = tree(t, get(t, d, child))
	for _, name := range []string{"/usr/bin", "/usr/bin/tool", "/pax/" + strings.Repeat("n", 200), "/usr/.wh.bin", "/pax/.wh..wh..opq"} {
		if line, there := found[name]; there {
			t.Errorf("%s (%s) is there, and mustn't be", name, line)
		}
	}
	if found["/pax/new"] == "" || found["/fifo"] == "" {
		t.Errorf("what has to be there isn't: %v", found)
	}
}

// The tar, cut where no end of it can be seen: in a file's content, and in a header.
func cut(whole []byte) map[string][]byte {
	return map[string][]byte{"in a file": whole[:100_000], "in a header": whole[:700]}
}

func testApplyTruncated(t *testing.T) {
	d := driver(t)
	whole := tarOf(t, everything()...)
	wanted := tree(t, get(t, d, layer(t, d, "", everything()...)))
	for where, part := range cut(whole) {
		id := stringid.GenerateRandomID()
		ok(t, d.Create(id, "", nil))
		size, err := d.ApplyDiff(id, "", bytes.NewReader(part))
		if err == nil {
			t.Errorf("a tar that ends %s gives a layer of %d bytes", where, size)
		}
		_, err = d.ApplyDiff(id, "", bytes.NewReader(whole))
		ok(t, err)
		sameTrees(t, tree(t, get(t, d, id)), wanted)
	}
}

func testApplyTruncatedLeavesNothing(t *testing.T) {
	d := driver(t)
	base := image(t, d)
	wanted := tree(t, get(t, d, base))
	for where, part := range cut(tarOf(t, everything()...)) {
		id := stringid.GenerateRandomID()
		ok(t, d.Create(id, base, nil))
		if _, err := d.ApplyDiff(id, base, bytes.NewReader(part)); err == nil {
			t.Errorf("a tar that ends %s gives a layer", where)
		}
		sameTrees(t, tree(t, get(t, d, id)), wanted)
		changesAre(t, d, id, base)
	}
}

// Fails once, after so many bytes, and then goes on as if nothing had been: the proxy sends the rest in a request of its own, as
// it does after a restart of the plugin.
type interrupted struct {
	rest  []byte
	until int
}

func (r *interrupted) Read(to []byte) (int, error) {
	switch {
	case r.until == 0:
		r.until = -1
		return 0, errors.New("the connection broke off")
	case len(r.rest) == 0:
		return 0, io.EOF
	case r.until > 0 && len(to) > r.until:
		to = to[:r.until]
	}
	n := copy(to, r.rest)
	r.rest = r.rest[n:]
	if r.until > 0 {
		r.until -= n
	}
	return n, nil
}

// Each rest is a whole tar by itself: the second of two files, none, and not even that. Half of a layer mustn't be taken for all.
func testApplyBrokenOff(t *testing.T) {
	d := driver(t)
	first, second := file("first", strings.Repeat("1", 64<<10)), file("second", strings.Repeat("2", 64<<10))
	whole := tarOf(t, first, second)
	for rest, until := range map[string]int{"a file": 512 + 64<<10, "the end": len(whole) - 1024, "nothing": len(whole)} {
		id := stringid.GenerateRandomID()
		ok(t, d.Create(id, "", nil))
		size, err := d.ApplyDiff(id, "", &interrupted{whole, until})
		// Who has seen the end needn't have waited for the error.
		if err == nil && (size != 128<<10 || len(tree(t, get(t, d, id))) != 2) {
			t.Errorf("with %s for a rest, it gives a layer of %d bytes: %v", rest, size, tree(t, get(t, d, id)))
		}
		t.Log(err)
		// What dockerd does then.
		remove(t, d, id)
		id = layer(t, d, "", first, second)
		same(t, "files after a new start", len(tree(t, get(t, d, id))), 2)
	}
}

func testDiffExact(t *testing.T) {
	d := driver(t)
	capable, is := underTest.Driver.(graphdriver.CapabilityDriver)
	if !is || !capable.Capabilities().ReproducesExactDiffs {
		t.Fatal("the driver doesn't say that it reproduces exact diffs")
	}
	padded := append(tarOf(t, everything()...), make([]byte, 10_240)...)
	twice := tarOf(t, file("./twice", "one"), file("./twice", "another"), dir("."), file("late/file", "before its directory"), dir("late"))
	whiteouts := tarOf(t, dir("usr"), file("usr/.wh.bin", ""), file(".wh.not-there", ""), dir("tmp"), file("tmp/.wh..wh..opq", ""))
	for name, chain := range map[string][][]byte{
		"padded":       {padded},
		"twice":        {twice},
		"whiteouts":    {padded, whiteouts},
		"empty":        {make([]byte, 1024)},
		"empty on top": {padded, make([]byte, 1024)},
	} {
		parent := ""
		for _, content := range chain {
			id := stringid.GenerateRandomID()
			ok(t, d.Create(id, parent, nil))
			size, err := d.ApplyDiff(id, parent, bytes.NewReader(content))
			ok(t, err)
			isExact(t, d, name, id, parent, content)
			again, err := d.DiffSize(id, parent)
			ok(t, err)
			same(t, name+": size", again, size)
			parent = id
		}
	}
}

func isExact(t *testing.T, d graphdriver.Driver, name, id, parent string, wanted []byte) {
	t.Helper()
	if got := diff(t, d, id, parent); !bytes.Equal(got, wanted) {
		t.Errorf("%s: %d bytes differ from the %d that were applied", name, len(got), len(wanted))
	}
}

// Clients go away in the middle; the layer is no worse for it.
func testDiffExactAgain(t *testing.T) {
	d := driver(t)
	content := tarOf(t, file("large", strings.Repeat("large ", 4<<20)), file("last", "last"))
	id := stringid.GenerateRandomID()
	ok(t, d.Create(id, "", nil))
	_, err := d.ApplyDiff(id, "", bytes.NewReader(content))
	ok(t, err)
	for n := 0; n < 8; n++ {
		stream, err := d.Diff(id, "")
		ok(t, err)
		_, err = io.ReadFull(stream, make([]byte, 1<<20))
		ok(t, err)
		ok(t, stream.Close())
	}
	isExact(t, d, "after eight that went away", id, "", content)
	child := created(t, d, id)
	changesAre(t, d, child.id, child.init)
	isExact(t, d, "with a container on it", id, "", content)
	remove(t, d, child.id, child.init, id)
}
