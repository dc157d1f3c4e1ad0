package graphdriver

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/daemon/graphdriver"
	"github.com/docker/docker/pkg/archive"
	"github.com/docker/docker/pkg/stringid"
	"golang.org/x/sys/unix"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func same(t *testing.T, what string, got, wanted interface{}) {
	t.Helper()
	if !reflect.DeepEqual(got, wanted) {
		t.Errorf("%s:\n   got %v\nwanted %v", what, got, wanted)
	}
}

// It has to fail, and its message to have this in it.
func refused(t *testing.T, err error, word string) {
	t.Helper()
	if err == nil {
		t.Fatalf("it succeeded; it has to be refused with a word about %q", word)
	}
	if !strings.Contains(strings.ToLower(err.Error()), word) {
		t.Errorf("the message doesn't say %q: %v", word, err)
	}
	t.Log(err)
}

// A layer of these entries, as a load makes one.
func layer(t *testing.T, d graphdriver.Driver, parent string, entries ...entry) string {
	t.Helper()
	id := stringid.GenerateRandomID()
	ok(t, d.Create(id, parent, nil))
	_, err := d.ApplyDiff(id, parent, bytes.NewReader(tarOf(t, entries...)))
	ok(t, err)
	return id
}

// Where its tree is, from a Get to the test's end.
func get(t *testing.T, d graphdriver.Driver, id string) string {
	t.Helper()
	root, err := d.Get(id, "")
	ok(t, err)
	t.Cleanup(func() {
		if err := d.Put(id); err != nil {
			t.Errorf("put %s: %v", id, err)
		}
	})
	return pathOf(root)
}

func write(t *testing.T, root, name, content string) {
	t.Helper()
	file := filepath.Join(root, name)
	ok(t, os.MkdirAll(filepath.Dir(file), 0o755))
	ok(t, os.WriteFile(file, []byte(content), 0o644))
}

func remove(t *testing.T, d graphdriver.Driver, ids ...string) {
	t.Helper()
	for _, id := range ids {
		ok(t, d.Remove(id))
		if d.Exists(id) {
			t.Errorf("%s exists, and was removed", id)
		}
	}
}

// As `docker diff` prints them: "C /etc".
func changes(d graphdriver.Driver, id, parent string) ([]string, error) {
	found, err := d.Changes(id, parent)
	var lines []string
	for _, change := range found {
		lines = append(lines, (&archive.Change{Path: change.Path, Kind: change.Kind}).String())
	}
	sort.Strings(lines)
	return lines, err
}

func changesAre(t *testing.T, d graphdriver.Driver, id, parent string, wanted ...string) {
	t.Helper()
	found, err := changes(d, id, parent)
	ok(t, err)
	sort.Strings(wanted)
	same(t, "changes", found, wanted)
}

func diff(t *testing.T, d graphdriver.Driver, id, parent string) []byte {
	t.Helper()
	content, err := diffOf(d, id, parent)
	ok(t, err)
	return content
}

func diffOf(d graphdriver.Driver, id, parent string) ([]byte, error) {
	stream, err := d.Diff(id, parent)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(stream)
	if closed := stream.Close(); err == nil {
		err = closed
	}
	return content, err
}

// The names in a tar in their order, the root's own left out.
func names(content []byte) ([]string, error) {
	var found []string
	for in := tar.NewReader(bytes.NewReader(content)); ; {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		if name := path.Clean(header.Name); name != "." {
			found = append(found, name)
		}
	}
}

// A member of a tar; what isn't set is made up.
type entry struct {
	tar.Header
	content string
}

func dir(name string) entry {
	return entry{Header: tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755}}
}

func file(name, content string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, content: content}
}

func link(name, to string, kind byte) entry {
	return entry{Header: tar.Header{Name: name, Linkname: to, Typeflag: kind, Mode: 0o777}}
}

var longAgo = time.Unix(1_500_000_000, 0)

func tarOf(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		header := e.Header
		header.Size = int64(len(e.content))
		if header.ModTime.IsZero() {
			header.ModTime = longAgo
		}
		ok(t, w.WriteHeader(&header))
		_, err := io.WriteString(w, e.content)
		ok(t, err)
	}
	ok(t, w.Close())
	return out.Bytes()
}

// All of a tree that a tar carries: a line for each path.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	found := map[string]string{}
	first := map[uint64]string{}
	ok(t, filepath.Walk(root, func(at string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(at, root)
		if name == "" {
			return nil
		}
		stat := info.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%s %d:%d %d", info.Mode(), stat.Uid, stat.Gid, info.ModTime().Unix())
		switch {
		case info.Mode().IsRegular():
			content, err := os.ReadFile(at)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %.8x", len(content), sha256.Sum256(content))
		case info.Mode()&os.ModeSymlink != 0:
			target, err := os.Readlink(at)
			if err != nil {
				return err
			}
			line += " -> " + target
		case info.Mode()&os.ModeDevice != 0:
			line += fmt.Sprintf(" %d,%d", unix.Major(stat.Rdev), unix.Minor(stat.Rdev))
		}
		if !info.IsDir() && stat.Nlink > 1 {
			if first[stat.Ino] == "" {
				first[stat.Ino] = name
			}
			line += fmt.Sprintf(" %d links, as %s", stat.Nlink, first[stat.Ino])
		}
		value := make([]byte, 256)
		if n, err := unix.Lgetxattr(at, "security.capability", value); err == nil {
			line += fmt.Sprintf(" capability %x", value[:n])
		}
		found[name] = line
		return nil
	}))
	return found
}

func sameTrees(t *testing.T, got, wanted map[string]string) {
	t.Helper()
	for name, line := range wanted {
		if got[name] != line {
			t.Errorf("%s is %q, has to be %q", name, got[name], line)
		}
	}
	for name, line := range got {
		if _, known := wanted[name]; !known {
			t.Errorf("%s (%s) is there, and mustn't be", name, line)
		}
	}
}
