package snapshotter

import (
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const clients = 64

// How many seconds TestParallel works.
func seconds(t *testing.T) time.Duration {
	text := os.Getenv("PARALLEL_SECONDS")
	if text == "" {
		text = "5"
	}
	number, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(number) * time.Second
}

// One of many: keys of its own, where every call must succeed, and keys that all fight for, where a call may lose.
type client struct {
	number  int
	api     snapshotsapi.SnapshotsClient
	random  *rand.Rand
	calls   *int64
	lost    *int64
	longest time.Duration
}

// TestParallel has 64 clients prepare, write, commit, look and remove at once. No call fails for another reason than the
// contract has for it, each reads what it wrote, and in the end nothing is there.
func TestParallel(t *testing.T) {
	w := begun(t)
	w.in(w.prepare("work", ""), write("of-all", 100_000))
	w.commit("of-all", "work", nil)
	var calls, lost int64
	end := time.Now().Add(seconds(t))
	problems := make(chan error, clients)
	var group sync.WaitGroup
	all := make([]*client, clients)
	for number := range all {
		api, connection, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		defer connection.Close()
		c := &client{number: number, api: api, random: rand.New(rand.NewSource(int64(number))), calls: &calls, lost: &lost}
		all[number] = c
		group.Add(1)
		go func() {
			defer group.Done()
			for round := 0; time.Now().Before(end); round++ {
				err := c.alone(round)
				if err == nil {
					err = c.against()
				}
				if err != nil {
					problems <- fmt.Errorf("client %d, round %d: %w", c.number, round, err)
					return
				}
			}
		}()
	}
	group.Wait()
	close(problems)
	for err := range problems {
		t.Error(err)
	}
	var longest time.Duration
	for _, c := range all {
		if c.longest > longest {
			longest = c.longest
		}
	}
	t.Logf("%d clients: %d calls, %d of them lost a fight; the longest took %v", clients, calls, lost, longest)
	if !t.Failed() && (calls < clients || lost == 0) {
		t.Error("that was no fight")
	}
	w.equal("what is there that nobody fought for", w.names("name~=^of-"), []string{"of-all"})
}

// call counts one, and how long it took.
func (c *client) call(what string, do func() error) error {
	started := time.Now()
	err := do()
	if took := time.Since(started); took > c.longest {
		c.longest = took
	}
	atomic.AddInt64(c.calls, 1)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func (c *client) remove(name string) error {
	return c.call("remove "+name, func() error {
		_, err := c.api.Remove(ctx, &snapshotsapi.RemoveSnapshotRequest{Key: name})
		return err
	})
}

// alone makes a layer on the common one and a container on that, and removes both.
func (c *client) alone(round int) error {
	mark := fmt.Sprintf("of-%d-%d", c.number, round)
	work, layer, container, view := "key "+mark, "layer/"+mark, "container/"+mark, "view/"+mark
	var reply *snapshotsapi.PrepareSnapshotResponse
	prepare := func(key, parent string) error {
		return c.call("prepare "+key, func() (err error) {
			reply, err = c.api.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Key: key, Parent: parent})
			return err
		})
	}
	if err := prepare(work, "of-all"); err != nil {
		return err
	}
	if err := inside(reply.Mounts, write(mark, 10_000+c.number)); err != nil {
		return err
	}
	if err := c.call("commit "+layer, func() error {
		_, err := c.api.Commit(ctx, &snapshotsapi.CommitSnapshotRequest{Name: layer, Key: work})
		return err
	}); err != nil {
		return err
	}
	if err := prepare(container, layer); err != nil {
		return err
	}
	if err := inside(reply.Mounts, func(root string) error {
		found, err := os.Stat(filepath.Join(root, mark))
		if err == nil && found.Size() != int64(10_000+c.number) {
			err = fmt.Errorf("%s has %d bytes", mark, found.Size())
		}
		return err
	}); err != nil {
		return err
	}
	if err := c.call("view "+view, func() error {
		_, err := c.api.View(ctx, &snapshotsapi.ViewSnapshotRequest{Key: view, Parent: layer})
		return err
	}); err != nil {
		return err
	}
	if err := c.call("usage "+container, func() error {
		found, err := c.api.Usage(ctx, &snapshotsapi.UsageRequest{Key: container})
		if err == nil && found.Size_ > 256<<10 {
			err = fmt.Errorf("an untouched container holds %d bytes", found.Size_)
		}
		return err
	}); err != nil {
		return err
	}
	if err := c.call("stat "+layer, func() error {
		found, err := c.api.Stat(ctx, &snapshotsapi.StatSnapshotRequest{Key: layer})
		if err == nil && (found.Info.Parent != "of-all" || found.Info.Kind != snapshotsapi.KindCommitted) {
			err = fmt.Errorf("it is %v", found.Info)
		}
		return err
	}); err != nil {
		return err
	}
	for _, name := range []string{view, container, layer} {
		if err := c.remove(name); err != nil {
			return err
		}
	}
	return nil
}

// against does something with a key that others do something with, too.
func (c *client) against() error {
	name := func(kind string) string { return fmt.Sprint(kind, c.random.Intn(4)) }
	active, done := name("fought-for/active-"), name("fought-for/done-")
	parent := ""
	if c.random.Intn(2) == 0 {
		parent = done
	}
	steps := []struct {
		do    func() error
		known []codes.Code
	}{
		{func() error {
			_, err := c.api.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Key: active, Parent: parent})
			return err
		}, []codes.Code{codes.AlreadyExists, codes.NotFound}},
		{func() error {
			_, err := c.api.Commit(ctx, &snapshotsapi.CommitSnapshotRequest{Name: done, Key: active})
			return err
		}, []codes.Code{codes.AlreadyExists, codes.NotFound}},
		{func() error {
			_, err := c.api.Remove(ctx, &snapshotsapi.RemoveSnapshotRequest{Key: active})
			return err
		}, []codes.Code{codes.NotFound}},
		{func() error {
			_, err := c.api.Remove(ctx, &snapshotsapi.RemoveSnapshotRequest{Key: done})
			return err
		}, []codes.Code{codes.NotFound, codes.FailedPrecondition}},
		{func() error {
			_, err := c.api.Usage(ctx, &snapshotsapi.UsageRequest{Key: active})
			return err
		}, []codes.Code{codes.NotFound}},
		{func() error {
			_, err := c.api.Mounts(ctx, &snapshotsapi.MountsRequest{Key: active})
			return err
		}, []codes.Code{codes.NotFound}},
		{func() error {
			_, err := c.api.Cleanup(ctx, &snapshotsapi.CleanupRequest{})
			return err
		}, []codes.Code{codes.Unimplemented}},
	}
	number := c.random.Intn(len(steps))
	step := steps[number]
	err := c.call(fmt.Sprintf("step %d with %s, %s and parent %q", number, active, done, parent), step.do)
	for _, code := range step.known {
		if err != nil && status.Code(cause(err)) == code {
			atomic.AddInt64(c.lost, 1)
			return nil
		}
	}
	return err
}

// This grpc's status doesn't look through a wrapped error.
func cause(err error) error {
	if wrapped, ok := err.(interface{ Unwrap() error }); ok && wrapped.Unwrap() != nil {
		return wrapped.Unwrap()
	}
	return err
}
