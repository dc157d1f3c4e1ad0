package graphdriver

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/docker/docker/daemon/graphdriver"
	"github.com/docker/docker/daemon/graphdriver/graphtest"
	"github.com/docker/docker/daemon/initlayer"
	"github.com/docker/docker/pkg/idtools"
	"github.com/docker/docker/pkg/stringid"
	"golang.org/x/sys/unix"
)

// What dockerd calls a container's own two trees: that with its mount points, and the writable one on top.
type container struct{ init, id string }

func newContainer() container {
	id := stringid.GenerateRandomID()
	return container{id + "-init", id}
}

// create takes the steps of dockerd's layer store, with its own filling of the first tree.
func create(d graphdriver.Driver, image string, options map[string]string) (container, error) {
	c := newContainer()
	opts := &graphdriver.CreateOpts{StorageOpt: options}
	if err := d.CreateReadWrite(c.init, image, opts); err != nil {
		return c, err
	}
	root, err := d.Get(c.init, "")
	if err != nil {
		return c, err
	}
	if err := initlayer.Setup(root, idtools.Identity{}); err != nil {
		return c, err
	}
	if err := d.Put(c.init); err != nil {
		return c, err
	}
	return c, d.CreateReadWrite(c.id, c.init, opts)
}

func created(t *testing.T, d graphdriver.Driver, image string) container {
	t.Helper()
	c, err := create(d, image, nil)
	ok(t, err)
	return c
}

const passwd = "root:x:0:0:root:/root:/bin/sh\n"

func image(t *testing.T, d graphdriver.Driver) string {
	t.Helper()
	return layer(t, d, "",
		dir("bin"), file("bin/tool", "#!/bin/true\n"),
		dir("etc"), file("etc/passwd", passwd), file("etc/group", "root:x:0:\n"),
		dir("var"), dir("var/log"), file("var/log/old", "a line\n"))
}

// What dockerd's own filling of the first tree shows against this image.
var initial = []string{
	"A /.dockerenv", "A /dev", "A /dev/console", "A /dev/pts", "A /dev/shm", "C /etc", "A /etc/hostname", "A /etc/hosts",
	"A /etc/mtab", "A /etc/resolv.conf", "A /proc", "A /sys",
}

func testContainerUntouched(t *testing.T) {
	d := driver(t)
	base := image(t, d)
	c := created(t, d, base)
	for _, when := range []string{"created", "got", "put"} {
		switch when {
		case "got":
			_, err := d.Get(c.id, "")
			ok(t, err)
		case "put":
			ok(t, d.Put(c.id))
		}
		changesAre(t, d, c.id, c.init)
		size, err := d.DiffSize(c.id, c.init)
		ok(t, err)
		same(t, "size when "+when, size, int64(0))
		found, err := names(diff(t, d, c.id, c.init))
		ok(t, err)
		same(t, "tar when "+when, found, []string(nil))
	}
	changesAre(t, d, c.init, base, initial...)
	remove(t, d, c.id, c.init, base)
}

// Writes over, removes, renames and adds, of the image and of the first tree; returns the changes and their bytes.
func edit(t *testing.T, root string) ([]string, int64) {
	t.Helper()
	write(t, root, "data/new", strings.Repeat("new\n", 5000))
	write(t, root, "etc/passwd", strings.Replace(passwd, "/bin/sh", "/bin/no", 1)) // As long as it was.
	write(t, root, "etc/hosts", "127.0.0.1 localhost\n")
	ok(t, os.Remove(filepath.Join(root, "etc/group")))
	ok(t, os.Remove(filepath.Join(root, ".dockerenv")))
	ok(t, os.Chmod(filepath.Join(root, "bin/tool"), 0o700))
	ok(t, os.Rename(filepath.Join(root, "var/log/old"), filepath.Join(root, "var/log/older")))
	return []string{
		"C /bin", "C /bin/tool", "A /data", "A /data/new", "D /.dockerenv", "C /etc", "D /etc/group", "C /etc/hosts",
		"C /etc/passwd", "C /var", "C /var/log", "D /var/log/old", "A /var/log/older",
	}, int64(20000 + len(passwd) + len("127.0.0.1 localhost\n") + len("#!/bin/true\n") + len("a line\n"))
}

func testContainerWritten(t *testing.T) {
	d := driver(t)
	base := image(t, d)
	c := created(t, d, base)
	wanted, written := edit(t, get(t, d, c.id))
	changesAre(t, d, c.id, c.init, wanted...)
	size, err := d.DiffSize(c.id, c.init)
	ok(t, err)
	same(t, "size", size, written)

	found, err := names(diff(t, d, c.id, c.init))
	ok(t, err)
	seen := map[string]bool{".": true}
	for _, name := range found {
		if !seen[path.Dir(name)] {
			t.Errorf("%s comes before its directory: %v", name, found)
		}
		seen[name] = true
	}
	sort.Strings(found)
	same(t, "tar", found, []string{
		".wh..dockerenv", "bin", "bin/tool", "data", "data/new", "etc", "etc/.wh.group", "etc/hosts", "etc/passwd", "var",
		"var/log", "var/log/.wh.old", "var/log/older",
	})
	changesAre(t, d, c.init, base, initial...)
	t.Cleanup(func() { remove(t, d, c.id, c.init, base) })
}

// Diff of a container streams into a new layer on its image, and nothing of the first tree but what was changed comes along.
func testContainerCommit(t *testing.T) {
	d := driver(t)
	base := image(t, d)
	c := created(t, d, base)
	root := get(t, d, c.id)
	_, written := edit(t, root)
	committed := commit(t, d, c, base, written)

	wanted := treeWithout(t, root, "/dev", "/dev/console", "/dev/pts", "/dev/shm", "/etc/hostname", "/etc/mtab", "/etc/resolv.conf",
		"/proc", "/sys")
	sameTrees(t, tree(t, get(t, d, committed)), wanted)
	again := created(t, d, committed)
	changesAre(t, d, again.id, again.init)
	remove(t, d, again.id, again.init)
}

func commit(t *testing.T, d graphdriver.Driver, c container, base string, written int64) string {
	t.Helper()
	committed := stringid.GenerateRandomID()
	stream, err := d.Diff(c.id, c.init)
	ok(t, err)
	ok(t, d.Create(committed, base, nil))
	size, err := d.ApplyDiff(committed, base, stream)
	ok(t, err)
	ok(t, stream.Close())
	same(t, "applied size", size, written)
	return committed
}

func treeWithout(t *testing.T, root string, names ...string) map[string]string {
	t.Helper()
	found := tree(t, root)
	for _, name := range names {
		delete(found, name)
	}
	return found
}

// What dockerd puts into the first tree is the image's own here and there, and becomes other things in the container.
func testContainerInitEdited(t *testing.T) {
	d := driver(t)
	base := layer(t, d, "", dir("etc"), file("etc/hosts", "10.0.0.1 image\n"), file("etc/keep", "kept\n"))
	c := created(t, d, base)
	changesAre(t, d, c.id, c.init)
	root := get(t, d, c.id)
	at := func(name string) string { return filepath.Join(root, name) }
	write(t, root, "dev/shm/x", "in a new directory\n")
	ok(t, os.Remove(at("proc")))
	ok(t, os.Remove(at("etc/hosts")))
	write(t, root, "etc/hosts/inside", "a directory now\n")
	ok(t, os.Rename(at(".dockerenv"), at("moved")))
	ok(t, os.Chmod(at("etc/hostname"), 0o600))
	ok(t, os.Remove(at("etc/mtab")))
	write(t, root, "etc/mtab", "no link\n")
	changesAre(t, d, c.id, c.init, "C /dev", "C /dev/shm", "A /dev/shm/x", "D /proc", "C /etc", "C /etc/hosts", "A /etc/hosts/inside",
		"D /.dockerenv", "A /moved", "C /etc/hostname", "C /etc/mtab")
	committed := commit(t, d, c, base, int64(len("in a new directory\n")+len("a directory now\n")+len("no link\n")))
	wanted := treeWithout(t, root, "/dev/console", "/dev/pts", "/etc/resolv.conf", "/sys")
	sameTrees(t, tree(t, get(t, d, committed)), wanted)

	// Asking for the first tree now leads to it as it was.
	other := newContainer()
	ok(t, d.CreateReadWrite(other.id, c.init, nil))
	changesAre(t, d, other.id, c.init)
	for _, name := range initial {
		if _, err := os.Lstat(filepath.Join(get(t, d, other.id), strings.Fields(name)[1])); err != nil {
			t.Errorf("a second container has no %s: %v", name, err)
		}
	}
	changesAre(t, d, c.init, base, append([]string{"C /etc/hosts"}, without(initial, "A /etc/hosts")...)...)
	changesAre(t, d, c.id, c.init, "C /dev", "C /dev/shm", "A /dev/shm/x", "D /proc", "C /etc", "C /etc/hosts", "A /etc/hosts/inside",
		"D /.dockerenv", "A /moved", "C /etc/hostname", "C /etc/mtab")
	t.Cleanup(func() { remove(t, d, other.id, c.id, c.init, committed, base) })
}

func testRemoveInitLast(t *testing.T) {
	d := driver(t)
	base := image(t, d)
	c := created(t, d, base)
	remove(t, d, c.id)
	remove(t, d, c.init, base)
}

func testRemoveInitFirst(t *testing.T) {
	d := driver(t)
	base := image(t, d)
	c := created(t, d, base)
	remove(t, d, c.init)
	same(t, "the container exists", d.Exists(c.id), true)
	remove(t, d, c.id, base)
}

func testRemoveTwice(t *testing.T) {
	d := driver(t)
	c := created(t, d, image(t, d))
	remove(t, d, c.id, c.id, c.init, c.init)
	ok(t, d.Remove(stringid.GenerateRandomID()))
}

// A broken connection makes dockerd send a Create once more.
func testCreateRetried(t *testing.T) {
	d := driver(t)
	base, other := image(t, d), image(t, d)
	c := created(t, d, base)
	root := get(t, d, c.id)
	write(t, root, "kept", "kept\n")
	ok(t, d.CreateReadWrite(c.id, c.init, &graphdriver.CreateOpts{}))
	changesAre(t, d, c.id, c.init, "A /kept")
	read := stringid.GenerateRandomID()
	ok(t, d.Create(read, base, nil))
	ok(t, d.Create(read, base, nil))
	refused(t, d.Create(read, other, nil), other[:12])
	refused(t, d.CreateReadWrite(c.id, base, nil), base[:12])
	refused(t, d.CreateReadWrite(c.id, "", nil), c.id[:12])
	changesAre(t, d, c.id, c.init, "A /kept")
}

// As after a kill -9 of dockerd.
func testPutWithoutGet(t *testing.T) {
	d := driver(t)
	c := created(t, d, image(t, d))
	ok(t, d.Put(c.id))
	ok(t, d.Put(c.id))
	write(t, get(t, d, c.id), "after", "after\n")
	changesAre(t, d, c.id, c.init, "A /after")
}

func testGetAgain(t *testing.T) {
	d := driver(t)
	c := created(t, d, image(t, d))
	one, two := get(t, d, c.id), get(t, d, c.id)
	same(t, "the second path", two, one)
	ok(t, d.Put(c.id))
	ok(t, d.Put(c.id))
	_, err := d.Get(c.id, "")
	ok(t, err)
	write(t, one, "after", "after\n")
}

func testMissing(t *testing.T) {
	d := driver(t)
	missing := stringid.GenerateRandomID()
	same(t, "it exists", d.Exists(missing), false)
	_, err := d.Get(missing, "")
	refused(t, err, missing[:12])
	refused(t, d.Create(stringid.GenerateRandomID(), missing, nil), missing[:12])
}

func testMissingRefused(t *testing.T) {
	d := driver(t)
	missing := stringid.GenerateRandomID()
	_, err := diffOf(d, missing, "")
	refused(t, err, missing[:12])
	_, err = d.ApplyDiff(missing, "", bytes.NewReader(tarOf(t, file("a", "b"))))
	refused(t, err, missing[:12])
	_, err = d.Changes(missing, "")
	refused(t, err, missing[:12])
	_, err = d.DiffSize(missing, "")
	refused(t, err, missing[:12])
	_, err = d.GetMetadata(missing)
	refused(t, err, missing[:12])
}

func testSetQuota(t *testing.T) {
	if limits == "held" {
		graphtest.DriverTestSetQuota(t, registered, true)
		return
	}
	d := driver(t)
	base := image(t, d)
	_, err := create(d, base, map[string]string{"size": "50M"})
	refused(t, err, "quota")
	c := created(t, d, base)
	remove(t, d, c.id, c.init)
}

// The image doesn't count; both of a container's trees get the option.
func testLimitBelowImage(t *testing.T) {
	d := driver(t)
	base := layer(t, d, "", file("big", strings.Repeat("x", 8<<20)))
	c, err := create(d, base, map[string]string{"size": "4M"})
	if limits == "refused" {
		refused(t, err, "quota")
		return
	}
	ok(t, err)
	root := get(t, d, c.id)
	write(t, root, "fits", strings.Repeat("y", 2<<20))
	err = os.WriteFile(filepath.Join(root, "exceeds"), make([]byte, 8<<20), 0o644)
	if !errors.Is(err, unix.EDQUOT) && !errors.Is(err, unix.ENOSPC) {
		t.Errorf("8 MiB more end in %v in place of EDQUOT or ENOSPC", err)
	}
	t.Cleanup(func() { remove(t, d, c.id, c.init, base) })
}

func testUnknownOption(t *testing.T) {
	d := driver(t)
	_, err := create(d, image(t, d), map[string]string{"flavour": "sweet"})
	refused(t, err, "flavour")
}

func testRefusalLeavesNothing(t *testing.T) {
	d := driver(t)
	base := image(t, d)
	cases := []struct{ key, value, word string }{{"flavour", "sweet", "flavour"}, {"size", "plenty", "plenty"}}
	if limits == "refused" {
		cases = append(cases, struct{ key, value, word string }{"size", "50M", "quota"})
	}
	for _, option := range cases {
		c, err := create(d, base, map[string]string{option.key: option.value})
		refused(t, err, option.word)
		same(t, "it exists, and was refused", d.Exists(c.init), false)
		ok(t, d.CreateReadWrite(c.init, base, nil))
		remove(t, d, c.init)
	}
}

func testRows(t *testing.T) {
	d := driver(t)
	c := created(t, d, image(t, d))
	if rows := d.Status(); len(rows) == 0 {
		t.Error("`docker info` has no rows to show")
	} else {
		t.Log(rows)
	}
	rows, err := d.GetMetadata(c.id)
	ok(t, err)
	if len(rows) == 0 {
		t.Error("`docker inspect` has no rows to show")
	}
	t.Log(rows)
}

// Sixteen clients, each with containers of its own on one image.
func testSixteen(t *testing.T) {
	d := driver(t)
	base := image(t, d)
	var all sync.WaitGroup
	for n := 0; n < 16; n++ {
		all.Add(1)
		go func(n int) {
			defer all.Done()
			for round := 0; round < 3; round++ {
				if err := live(d, base, fmt.Sprintf("%d-%d", n, round)); err != nil {
					t.Errorf("client %d, round %d: %v", n, round, err)
				}
			}
		}(n)
	}
	all.Wait()
	remove(t, d, base)
}

// A container's whole life, with a commit in it.
func live(d graphdriver.Driver, base, name string) error {
	c, err := create(d, base, nil)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	root, err := d.Get(c.id, "")
	if err != nil {
		return fmt.Errorf("get: %w", err)
	}
	if err := os.WriteFile(filepath.Join(pathOf(root), name), []byte(name), 0o644); err != nil {
		return err
	}
	if found, err := changes(d, c.id, c.init); err != nil || len(found) != 1 || found[0] != "A /"+name {
		return fmt.Errorf("changes: %v, %w", found, err)
	}
	committed := stringid.GenerateRandomID()
	if err := d.Create(committed, base, nil); err != nil {
		return fmt.Errorf("create a layer: %w", err)
	}
	stream, err := d.Diff(c.id, c.init)
	if err != nil {
		return fmt.Errorf("diff: %w", err)
	}
	size, err := d.ApplyDiff(committed, base, stream)
	stream.Close()
	if err != nil || size != int64(len(name)) {
		return fmt.Errorf("apply: %d bytes, %w", size, err)
	}
	if err := d.Put(c.id); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	for _, id := range []string{c.id, c.init, committed} {
		if err := d.Remove(id); err != nil {
			return fmt.Errorf("remove: %w", err)
		}
		if d.Exists(id) {
			return fmt.Errorf("%s exists, and was removed", id)
		}
	}
	return nil
}
