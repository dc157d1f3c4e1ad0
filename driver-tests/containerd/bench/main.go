// Command bench.client asks containerd's own snapshots and diff services, and says how long each answer took.
//
//	bench.client SOCKET SNAPSHOTTER
//
// It reads one JSON object a line and answers with one: {"do": "usage", "key": "k"} with {"ms": [0.4], "size": 8192, "inodes": 3}.
// An answer with "error" tells of a request that failed. It stays connected, so that no start of a process is in a time.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

const layer = "application/vnd.oci.image.layer.v1.tar+gzip"

// What containerd's collector leaves alone.
var kept = map[string]string{"containerd.io/gc.root": "bench"}

type request struct {
	Do      string  `json:"do"`
	Key     string  `json:"key"`
	Parent  string  `json:"parent"`
	Times   int     `json:"times"`
	Clients int     `json:"clients"`
	Seconds float64 `json:"seconds"`
	Out     string  `json:"out"`
}

type answer struct {
	// Of each time that it was asked.
	Ms     []float64      `json:"ms"`
	Count  int            `json:"count"`
	Size   int64          `json:"size"`
	Inodes int64          `json:"inodes"`
	Mounts []*types.Mount `json:"mounts,omitempty"`
	Error  string         `json:"error,omitempty"`
}

type client struct {
	ctx         context.Context
	socket      string
	snapshotter string
	snapshots   snapshotsapi.SnapshotsClient
	diffs       diffapi.DiffClient
	content     contentapi.ContentClient
	leases      leasesapi.LeasesClient
}

func connected(socket, snapshotter string) (*client, error) {
	// Debian 12's grpc has no credentials/insecure.
	connection, err := grpc.Dial("unix://"+socket, grpc.WithInsecure())
	if err != nil {
		return nil, err
	}
	return &client{
		ctx:         metadata.AppendToOutgoingContext(context.Background(), "containerd-namespace", "default"),
		socket:      socket,
		snapshotter: snapshotter,
		snapshots:   snapshotsapi.NewSnapshotsClient(connection),
		diffs:       diffapi.NewDiffClient(connection),
		content:     contentapi.NewContentClient(connection),
		leases:      leasesapi.NewLeasesClient(connection),
	}, nil
}

func since(start time.Time) float64 {
	return float64(time.Since(start).Nanoseconds()) / 1e6
}

func (c *client) prepare(key, parent string) ([]*types.Mount, error) {
	reply, err := c.snapshots.Prepare(c.ctx, &snapshotsapi.PrepareSnapshotRequest{
		Snapshotter: c.snapshotter, Key: key, Parent: parent, Labels: kept})
	if err != nil {
		return nil, err
	}
	return reply.Mounts, nil
}

func (c *client) remove(key string) error {
	_, err := c.snapshots.Remove(c.ctx, &snapshotsapi.RemoveSnapshotRequest{Snapshotter: c.snapshotter, Key: key})
	return err
}

func (c *client) usage(key string) (*snapshotsapi.UsageResponse, error) {
	return c.snapshots.Usage(c.ctx, &snapshotsapi.UsageRequest{Snapshotter: c.snapshotter, Key: key})
}

// collect has containerd's collector run to its end: until then a snapshot that was removed is only no longer listed.
func (c *client) collect() error {
	reply, err := c.leases.Create(c.ctx, &leasesapi.CreateRequest{ID: fmt.Sprint("bench-", time.Now().UnixNano())})
	if err != nil {
		return err
	}
	_, err = c.leases.Delete(c.ctx, &leasesapi.DeleteRequest{ID: reply.Lease.ID, Sync: true})
	return err
}

// diff asks for the layer of KEY's changes, as clients do that commit a container, and leaves it at OUT.
func (c *client) diff(r request, a *answer) error {
	view := r.Key + "-parent"
	start := time.Now()
	left, err := c.snapshots.View(c.ctx, &snapshotsapi.ViewSnapshotRequest{
		Snapshotter: c.snapshotter, Key: view, Parent: r.Parent, Labels: kept})
	if err != nil {
		return err
	}
	defer c.remove(view)
	right, err := c.snapshots.Mounts(c.ctx, &snapshotsapi.MountsRequest{Snapshotter: c.snapshotter, Key: r.Key})
	if err != nil {
		return err
	}
	asked := time.Now()
	reply, err := c.diffs.Diff(c.ctx, &diffapi.DiffRequest{
		Left: left.Mounts, Right: right.Mounts, MediaType: layer, Ref: fmt.Sprint("bench-", start.UnixNano()), Labels: kept})
	if err != nil {
		return err
	}
	a.Ms = append(a.Ms, since(asked), since(start))
	a.Size = reply.Diff.Size_
	if err := c.read(reply.Diff.Digest, r.Out); err != nil {
		return err
	}
	_, err = c.content.Delete(c.ctx, &contentapi.DeleteContentRequest{Digest: reply.Diff.Digest})
	return err
}

func (c *client) read(of digest.Digest, out string) error {
	stream, err := c.content.Read(c.ctx, &contentapi.ReadContentRequest{Digest: of})
	if err != nil {
		return err
	}
	file, err := os.Create(out)
	if err != nil {
		return err
	}
	defer file.Close()
	for {
		reply, err := stream.Recv()
		if err != nil {
			// Debian 12's generated code gives io.EOF as it is.
			if err.Error() == "EOF" {
				return nil
			}
			return err
		}
		if _, err := file.Write(reply.Data); err != nil {
			return err
		}
	}
}

// many has clients prepare and remove at once, each on a connection of its own, TIMES or until SECONDS are over. The time is over when all is collected.
func (c *client) many(r request, a *answer) error {
	start := time.Now()
	end := start.Add(time.Duration(r.Seconds * float64(time.Second)))
	counts, problems := make([]int, r.Clients), make(chan error, r.Clients)
	var group sync.WaitGroup
	for number := 0; number < r.Clients; number++ {
		own, err := connected(c.socket, c.snapshotter)
		if err != nil {
			return err
		}
		group.Add(1)
		go func(number int) {
			defer group.Done()
			for counts[number] < r.Times && time.Now().Before(end) {
				key := fmt.Sprintf("%s-%d-%d", r.Key, number, counts[number])
				_, err := own.prepare(key, r.Parent)
				if err == nil {
					err = own.remove(key)
				}
				if err != nil {
					problems <- err
					return
				}
				counts[number]++
			}
		}(number)
	}
	group.Wait()
	close(problems)
	for err := range problems {
		return err
	}
	a.Ms = append(a.Ms, since(start))
	if err := c.collect(); err != nil {
		return err
	}
	a.Ms = append(a.Ms, since(start))
	for _, count := range counts {
		a.Count += count
	}
	return nil
}

// poll asks for the usage of the snapshots KEY0, KEY1 and so on, TIMES of them or until SECONDS are over.
func (c *client) poll(r request, a *answer) error {
	start := time.Now()
	for ; a.Count < r.Times && since(start) < r.Seconds*1000; a.Count++ {
		reply, err := c.usage(fmt.Sprint(r.Key, a.Count))
		if err != nil {
			return err
		}
		a.Size += reply.Size_
		a.Inodes += reply.Inodes
	}
	a.Ms = append(a.Ms, since(start))
	return nil
}

func (c *client) do(r request, a *answer) error {
	start := time.Now()
	switch r.Do {
	case "prepare":
		mounts, err := c.prepare(r.Key, r.Parent)
		a.Ms, a.Mounts = append(a.Ms, since(start)), mounts
		return err
	case "remove":
		err := c.remove(r.Key)
		a.Ms = append(a.Ms, since(start))
		if err == nil {
			err = c.collect()
		}
		a.Ms = append(a.Ms, since(start))
		return err
	case "usage":
		for number := 0; number < r.Times && since(start) < r.Seconds*1000; number++ {
			asked := time.Now()
			reply, err := c.usage(r.Key)
			if err != nil {
				return err
			}
			a.Ms = append(a.Ms, since(asked))
			a.Size, a.Inodes = reply.Size_, reply.Inodes
		}
		return nil
	case "diff":
		return c.diff(r, a)
	case "many":
		return c.many(r, a)
	case "poll":
		return c.poll(r, a)
	}
	return fmt.Errorf("no request is called %q", r.Do)
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: bench.client SOCKET SNAPSHOTTER")
		os.Exit(2)
	}
	c, err := connected(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	lines, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	for lines.Scan() {
		r, a := request{Times: 1, Seconds: 3600}, answer{}
		err := json.Unmarshal(lines.Bytes(), &r)
		if err == nil {
			err = c.do(r, &a)
		}
		if err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			os.Exit(1)
		}
	}
}
