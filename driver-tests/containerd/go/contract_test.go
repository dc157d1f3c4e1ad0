package snapshotter

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/mount"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	ptypes "github.com/gogo/protobuf/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Keys as containerd's metadata service makes them, with all that may be in one.
func key(name string) string {
	return "k8s.io/17/extract-123 sha256:../" + name
}

var ctx = context.Background()

// A client of the wire, where codes and every field can be seen. Whatever a test leaves is removed.
type wire struct {
	*testing.T
	api snapshotsapi.SnapshotsClient
	sn  snapshots.Snapshotter
}

func begun(t *testing.T) wire {
	client, connection, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	w := wire{t, client, proxy.NewSnapshotter(client, "under-test")}
	t.Cleanup(func() {
		defer connection.Close()
		if err := removeAll(ctx, w.sn); err != nil {
			t.Error(err)
		}
		if err := cleanUp(ctx, w.sn); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w wire) prepare(name, parent string) []*types.Mount {
	w.Helper()
	reply, err := w.api.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Key: name, Parent: parent})
	w.must(err)
	return reply.Mounts
}

func (w wire) commit(name, from string, labels map[string]string) {
	w.Helper()
	_, err := w.api.Commit(ctx, &snapshotsapi.CommitSnapshotRequest{Name: name, Key: from, Labels: labels})
	w.must(err)
}

func (w wire) stat(name string) snapshotsapi.Info {
	w.Helper()
	reply, err := w.api.Stat(ctx, &snapshotsapi.StatSnapshotRequest{Key: name})
	w.must(err)
	return reply.Info
}

func (w wire) usage(name string) (int64, int64) {
	w.Helper()
	reply, err := w.api.Usage(ctx, &snapshotsapi.UsageRequest{Key: name})
	w.must(err)
	return reply.Size_, reply.Inodes
}

func (w wire) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w wire) code(what string, err error, wanted codes.Code) {
	w.Helper()
	if found := status.Code(err); found != wanted {
		w.Errorf("%s: %s (%v), expected %s", what, found, err, wanted)
	}
}

// The names of those that filters let pass.
func (w wire) names(filters ...string) []string {
	w.Helper()
	stream, err := w.api.List(ctx, &snapshotsapi.ListSnapshotsRequest{Filters: filters})
	w.must(err)
	found := []string{}
	for {
		reply, err := stream.Recv()
		if err != nil {
			if code := status.Code(err); code != codes.Unknown || err.Error() != "EOF" {
				w.Fatal(err)
			}
			break
		}
		for _, info := range reply.Info {
			found = append(found, info.Name)
		}
	}
	sort.Strings(found)
	return found
}

func (w wire) equal(what string, found, wanted interface{}) {
	w.Helper()
	if found, wanted := fmt.Sprint(found), fmt.Sprint(wanted); found != wanted {
		w.Errorf("%s: %s, expected %s", what, found, wanted)
	}
}

// in mounts what a reply says, as containerd does, and has `do` work there.
func (w wire) in(mounts []*types.Mount, do func(root string) error) {
	w.Helper()
	w.must(inside(mounts, do))
}

func inside(mounts []*types.Mount, do func(root string) error) error {
	var list []mount.Mount
	for _, m := range mounts {
		list = append(list, mount.Mount{Type: m.Type, Source: m.Source, Options: m.Options})
	}
	return mount.WithTempMount(ctx, list, do)
}

func write(name string, size int) func(string) error {
	return func(root string) error {
		return os.WriteFile(filepath.Join(root, name), []byte(strings.Repeat("x", size)), 0o644)
	}
}

// Every situation that containerd tells apart by its code.
func TestCodes(t *testing.T) {
	w := begun(t)
	base, active, view, gone := key("base"), key("active"), key("view"), key("gone")
	w.prepare(key("first"), "")
	w.commit(base, key("first"), nil)
	w.prepare(active, base)
	_, err := w.api.View(ctx, &snapshotsapi.ViewSnapshotRequest{Key: view, Parent: base})
	w.must(err)
	before := w.names()

	prepare := func(name, parent string) error {
		_, err := w.api.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Key: name, Parent: parent})
		return err
	}
	viewed := func(name, parent string) error {
		_, err := w.api.View(ctx, &snapshotsapi.ViewSnapshotRequest{Key: name, Parent: parent})
		return err
	}
	commit := func(name, from string) error {
		_, err := w.api.Commit(ctx, &snapshotsapi.CommitSnapshotRequest{Name: name, Key: from})
		return err
	}
	mounts := func(name string) error {
		_, err := w.api.Mounts(ctx, &snapshotsapi.MountsRequest{Key: name})
		return err
	}
	remove := func(name string) error {
		_, err := w.api.Remove(ctx, &snapshotsapi.RemoveSnapshotRequest{Key: name})
		return err
	}
	for _, taken := range []string{base, active, view} {
		w.code("prepare of "+taken, prepare(taken, base), codes.AlreadyExists)
		w.code("view of "+taken, viewed(taken, base), codes.AlreadyExists)
	}
	w.code("commit as a name that is taken", commit(base, active), codes.AlreadyExists)
	w.code("commit as a key that is taken", commit(view, active), codes.AlreadyExists)
	w.code("prepare on what isn't there", prepare(key("new"), gone), codes.NotFound)
	w.code("view on what isn't there", viewed(key("new"), gone), codes.NotFound)
	w.code("commit of what isn't there", commit(key("new"), gone), codes.NotFound)
	w.code("mounts of what isn't there", mounts(gone), codes.NotFound)
	w.code("remove of what isn't there", remove(gone), codes.NotFound)
	_, err = w.api.Stat(ctx, &snapshotsapi.StatSnapshotRequest{Key: gone})
	w.code("stat of what isn't there", err, codes.NotFound)
	_, err = w.api.Usage(ctx, &snapshotsapi.UsageRequest{Key: gone})
	w.code("usage of what isn't there", err, codes.NotFound)
	_, err = w.api.Update(ctx, &snapshotsapi.UpdateSnapshotRequest{Info: snapshotsapi.Info{Name: gone}})
	w.code("update of what isn't there", err, codes.NotFound)
	w.code("prepare on an active one", prepare(key("new"), active), codes.InvalidArgument)
	w.code("view on an active one", viewed(key("new"), active), codes.InvalidArgument)
	w.code("prepare on a view", prepare(key("new"), view), codes.InvalidArgument)
	_, err = w.api.Update(ctx, &snapshotsapi.UpdateSnapshotRequest{Info: snapshotsapi.Info{Name: base},
		UpdateMask: &ptypes.FieldMask{Paths: []string{"parent"}}})
	w.code("update of a parent", err, codes.InvalidArgument)
	w.code("commit of a view", commit(key("new"), view), codes.FailedPrecondition)
	w.code("commit of a committed one", commit(key("new"), base), codes.FailedPrecondition)
	w.code("remove of a parent", remove(base), codes.FailedPrecondition)
	if builtin == "" {
		// The built-in ones answer NotFound here.
		w.code("mounts of a committed one", mounts(base), codes.FailedPrecondition)
	}
	w.equal("what is there after all these", w.names(), before)
}

// A key can be taken again as soon as it is free, and a committed snapshot's name isn't its key.
func TestKeysAgain(t *testing.T) {
	w := begun(t)
	for round := 0; round < 5; round++ {
		w.in(w.prepare(key("work"), ""), write(fmt.Sprint("round-", round), 10))
		name := key(fmt.Sprint("done-", round))
		w.commit(name, key("work"), nil)
		mounts := w.prepare(key("work"), name)
		w.in(mounts, func(root string) error {
			found, err := os.ReadDir(root)
			if err == nil && (len(found) != 1 || found[0].Name() != fmt.Sprint("round-", round)) {
				err = fmt.Errorf("round %d has %v", round, found)
			}
			return err
		})
		_, err := w.api.Remove(ctx, &snapshotsapi.RemoveSnapshotRequest{Key: key("work")})
		w.must(err)
	}
}

func TestLabelsAndTimes(t *testing.T) {
	w := begun(t)
	_, err := w.api.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Key: "active", Labels: map[string]string{"old": "1", "both": "1"}})
	w.must(err)
	made := w.stat("active")
	w.equal("labels of prepare", made.Labels, map[string]string{"old": "1", "both": "1"})
	w.equal("kind", made.Kind, snapshotsapi.KindActive)
	time.Sleep(2 * time.Millisecond)
	w.commit("done", "active", map[string]string{"both": "2", "new": "2"})
	done := w.stat("done")
	w.equal("labels of commit", done.Labels, map[string]string{"both": "2", "new": "2"})
	w.equal("kind", done.Kind, snapshotsapi.KindCommitted)
	if !done.CreatedAt.After(made.CreatedAt) || !done.CreatedAt.Equal(done.UpdatedAt) {
		t.Errorf("made %v, committed %v, updated %v", made.CreatedAt, done.CreatedAt, done.UpdatedAt)
	}
	update := func(labels map[string]string, paths ...string) snapshotsapi.Info {
		t.Helper()
		request := &snapshotsapi.UpdateSnapshotRequest{Info: snapshotsapi.Info{Name: "done", Labels: labels}}
		if len(paths) > 0 {
			request.UpdateMask = &ptypes.FieldMask{Paths: paths}
		}
		reply, err := w.api.Update(ctx, request)
		w.must(err)
		w.equal("stat after update", w.stat("done"), reply.Info)
		return reply.Info
	}
	found := update(map[string]string{"new": "3", "ignored": "3"}, "labels.new")
	w.equal("labels after one was set", found.Labels, map[string]string{"both": "2", "new": "3"})
	if !found.UpdatedAt.After(done.UpdatedAt) || !found.CreatedAt.Equal(done.CreatedAt) {
		t.Errorf("created %v, updated %v; before %v", found.CreatedAt, found.UpdatedAt, done.UpdatedAt)
	}
	found = update(map[string]string{"a.b/c": "4"}, "labels.a.b/c")
	w.equal("labels after one with dots was set", found.Labels, map[string]string{"both": "2", "new": "3", "a.b/c": "4"})
	found = update(nil, "labels.both")
	w.equal("labels after one was set to nothing", found.Labels["both"], "")
	found = update(map[string]string{"only": "5"}, "labels")
	w.equal("labels after all were set", found.Labels, map[string]string{"only": "5"})
	found = update(map[string]string{"other": "6"})
	w.equal("labels after an update without a mask", found.Labels, map[string]string{"other": "6"})
}

func TestFilters(t *testing.T) {
	w := begun(t)
	for _, name := range []string{"a", "b"} {
		_, err := w.api.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Key: "work"})
		w.must(err)
		w.commit(key(name), "work", map[string]string{"a.b/c": name, "containerd.io/gc.root": "x"})
	}
	w.prepare("on-a", key("a"))
	for _, test := range []struct{ filters, wanted []string }{
		{nil, []string{key("a"), key("b"), "on-a"}},
		{[]string{"name==on-a"}, []string{"on-a"}},
		{[]string{`name=="` + key("a") + `"`}, []string{key("a")}},
		{[]string{"name!=on-a"}, []string{key("a"), key("b")}},
		{[]string{"name~=^on-.$"}, []string{"on-a"}},
		{[]string{`parent=="` + key("a") + `"`}, []string{"on-a"}},
		{[]string{"kind==committed"}, []string{key("a"), key("b")}},
		{[]string{`labels."a.b/c"==b`}, []string{key("b")}},
		{[]string{`labels."a.b/c"`}, []string{key("a"), key("b")}},
		{[]string{`kind==committed,labels."a.b/c"!=b`}, []string{key("a")}},
		{[]string{"kind==active", `labels."a.b/c"==b`}, []string{key("b"), "on-a"}},
		{[]string{"kind==view"}, []string{}},
	} {
		w.equal(fmt.Sprint("what ", test.filters, " lets pass"), w.names(test.filters...), test.wanted)
	}
	stream, err := w.api.List(ctx, &snapshotsapi.ListSnapshotsRequest{Filters: []string{"name=="}})
	w.must(err)
	_, err = stream.Recv()
	if builtin == "" {
		w.code("a filter that is none", err, codes.InvalidArgument)
	} else {
		// containerd's contrib/snapshotservice forgets the code.
		w.code("a filter that is none", err, codes.Unknown)
	}
}

// What a snapshot itself holds, not its parent: in blocks, hard links once.
func TestUsage(t *testing.T) {
	w := begun(t)
	w.in(w.prepare("first", ""), write("big", 8<<20))
	size, _ := w.usage("first")
	between(t, "the first one, active", size, 8<<20)
	w.commit("base", "first", nil)
	size, _ = w.usage("base")
	between(t, "the first one, committed", size, 8<<20)
	mounts := w.prepare("second", "base")
	size, _ = w.usage("second")
	between(t, "an untouched one", size, 0)
	w.in(mounts, func(root string) error {
		if err := write("new", 4<<20)(root); err != nil {
			return err
		}
		return os.Link(filepath.Join(root, "new"), filepath.Join(root, "again"))
	})
	size, inodes := w.usage("second")
	between(t, "a file with two names", size, 4<<20)
	if inodes < 1 {
		t.Errorf("%d inodes after a file was made", inodes)
	}
	w.in(mounts, func(root string) error { return os.Remove(filepath.Join(root, "big")) })
	size, _ = w.usage("second")
	between(t, "after a file of the parent's was removed", size, 4<<20)
	w.commit("child", "second", nil)
	size, _ = w.usage("child")
	between(t, "committed", size, 4<<20)
}

// Nothing but directories comes on top of what was written, and these take little.
func between(t *testing.T, what string, found, wanted int64) {
	t.Helper()
	if found < wanted || found > wanted+256<<10 {
		t.Errorf("%s: %d bytes, expected %d and little more", what, found, wanted)
	}
}

// containerd asks again for what it lost the answer of, and calls this after each collection.
func TestCleanup(t *testing.T) {
	w := begun(t)
	w.prepare("work", "")
	_, err := w.api.Cleanup(ctx, &snapshotsapi.CleanupRequest{})
	if code := status.Code(err); code != codes.OK && code != codes.Unimplemented {
		t.Errorf("cleanup: %v", err)
	}
	w.equal("what is there after it", w.names(), []string{"work"})
}

// A limit is on what is written, not on the parent. LIMITS says whether one can be held here.
func TestMaxSize(t *testing.T) {
	w := begun(t)
	w.in(w.prepare("first", ""), write("big", 30_000_000))
	w.commit("base", "first", nil)
	prepare := func(key, size string) ([]*types.Mount, error) {
		reply, err := w.api.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Key: key, Parent: "base",
			Labels: map[string]string{"containerd.io/snapshot/max-size": size}})
		if err != nil {
			return nil, err
		}
		return reply.Mounts, nil
	}
	mounts, err := prepare("limited", "20000000")
	switch os.Getenv("LIMITS") {
	case "held":
		w.must(err)
		w.in(mounts, write("fits", 10_000_000))
		if err := inside(mounts, synced("more", 40_000_000)); err == nil {
			t.Error("40 MB fit into 20 MB")
		}
		w.in(mounts, func(root string) error { return os.Remove(filepath.Join(root, "more")) })
		_, err = prepare("no-number", "much")
		w.code("a limit that is none", err, codes.InvalidArgument)
	case "refused":
		if err == nil {
			t.Error("a limit is promised where none can be held")
		}
		w.equal("what is there after a refusal", w.names(), []string{"base"})
	default:
		// containerd 1.6 has none.
		w.must(err)
	}
}

func synced(name string, size int) func(string) error {
	return func(root string) error {
		file, err := os.Create(filepath.Join(root, name))
		if err != nil {
			return err
		}
		defer file.Close()
		for ; size > 0; size -= 1_000_000 {
			if _, err := file.Write(make([]byte, 1_000_000)); err != nil {
				return err
			}
			if err := file.Sync(); err != nil {
				return err
			}
		}
		return nil
	}
}
