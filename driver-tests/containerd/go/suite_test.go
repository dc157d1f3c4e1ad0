// Package snapshotter runs containerd's own conformance suite of snapshotters, and more, against a socket through the proxy
// that containerd itself has.
//
// SNAPSHOTTER_SOCKET is the socket of the server under test. With BUILTIN=btrfs, native or overlayfs, containerd's own
// snapshotter of that name, below BUILTIN_ROOT, is served at BUILTIN_SOCKET and tested in its place: so what the tests expect
// is what containerd does. What only this project promises is left out there.
package snapshotter

import (
	"context"
	"fmt"
	"net"
	"os"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/contrib/snapshotservice"
	"github.com/containerd/containerd/errdefs"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/btrfs"
	"github.com/containerd/containerd/snapshots/native"
	"github.com/containerd/containerd/snapshots/overlay"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
)

var (
	socket  = os.Getenv("SNAPSHOTTER_SOCKET")
	builtin = os.Getenv("BUILTIN")
)

func TestMain(m *testing.M) {
	if err := begin(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	os.Exit(m.Run())
}

// Serves containerd's own snapshotter where that is asked for.
func begin() error {
	if builtin == "" {
		if socket == "" {
			return fmt.Errorf("SNAPSHOTTER_SOCKET isn't set: where does the server listen?")
		}
		return nil
	}
	root := os.Getenv("BUILTIN_ROOT")
	var sn snapshots.Snapshotter
	var err error
	switch builtin {
	case "btrfs":
		sn, err = btrfs.NewSnapshotter(root)
	case "native":
		sn, err = native.NewSnapshotter(root)
	case "overlayfs":
		sn, err = overlay.NewSnapshotter(root)
	default:
		err = fmt.Errorf("containerd has no snapshotter %q", builtin)
	}
	if err != nil {
		return err
	}
	socket = os.Getenv("BUILTIN_SOCKET")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(sn))
	go server.Serve(listener)
	return nil
}

// A connection of one's own, as each containerd has one.
func dial() (snapshotsapi.SnapshotsClient, *grpc.ClientConn, error) {
	// Debian 12's grpc has no credentials/insecure.
	connection, err := grpc.Dial("unix://"+socket, grpc.WithInsecure())
	if err != nil {
		return nil, nil, err
	}
	return snapshotsapi.NewSnapshotsClient(connection), connection, nil
}

// All snapshots there are.
func walked(ctx context.Context, sn snapshots.Snapshotter) ([]snapshots.Info, error) {
	var found []snapshots.Info
	err := sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		found = append(found, info)
		return nil
	})
	if builtin != "" && errdefs.IsNotFound(err) {
		// What containerd's own say until the first one is made.
		err = nil
	}
	return found, err
}

// Removes all snapshots, children first, and says what can't be.
func removeAll(ctx context.Context, sn snapshots.Snapshotter) error {
	for {
		found, err := walked(ctx, sn)
		if err != nil || len(found) == 0 {
			return err
		}
		parents := map[string]bool{}
		for _, info := range found {
			parents[info.Parent] = true
		}
		removed := 0
		for _, info := range found {
			if parents[info.Name] {
				continue
			}
			if err := sn.Remove(ctx, info.Name); err != nil {
				return fmt.Errorf("remove %s: %w", info.Name, err)
			}
			removed++
		}
		if removed == 0 {
			return fmt.Errorf("%d snapshots are each other's parents", len(found))
		}
	}
}

// What containerd's GC does when it has removed.
func cleanUp(ctx context.Context, sn snapshots.Snapshotter) error {
	if cleaner, ok := sn.(snapshots.Cleaner); ok {
		if err := cleaner.Cleanup(ctx); err != nil && !errdefs.IsNotImplemented(err) {
			return fmt.Errorf("cleanup: %w", err)
		}
	}
	return nil
}

// One after the other (-test.parallel 1): they share the server, and each expects to be alone with it.
func TestSuite(t *testing.T) {
	testsuite.SnapshotterSuite(t, "under-test", func(ctx context.Context, _ string) (snapshots.Snapshotter, func() error, error) {
		client, connection, err := dial()
		if err != nil {
			return nil, nil, err
		}
		sn := proxy.NewSnapshotter(client, "under-test")
		found, err := walked(ctx, sn)
		if err == nil && len(found) > 0 {
			err = fmt.Errorf("%d snapshots are there at the beginning", len(found))
		}
		return sn, func() error {
			defer connection.Close()
			if err := removeAll(ctx, sn); err != nil {
				return err
			}
			return cleanUp(ctx, sn)
		}, err
	})
}
