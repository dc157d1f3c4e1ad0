// Package graphdriver runs Docker's conformance suite of graph drivers, and more, against the plugin socket of reflinkd
// through the proxy that dockerd itself has.
//
// REFLINKD_SOCKET is the socket, REFLINKD_PIDFILE has the server's process, and REFLINKD_SERVE starts another; REFLINKD_LIMITS says whether size limits are "held" or "refused" there. With GRAPHDRIVER=overlay2
// or =vfs, Docker's own driver of that name is run in place of the plugin: what it doesn't do the same way isn't Docker's
// expectation, but ours alone, and is marked as such in the table.
package graphdriver

import (
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/docker/docker/daemon/graphdriver"
	"github.com/docker/docker/daemon/graphdriver/graphtest"
	_ "github.com/docker/docker/daemon/graphdriver/overlay2" // One of Docker's own, to hold the tests to.
	_ "github.com/docker/docker/daemon/graphdriver/vfs"      // Another.
	"github.com/docker/docker/pkg/plugingetter"
	"github.com/docker/docker/pkg/plugins"
	"github.com/docker/docker/pkg/reexec"
)

// What the suite knows the driver by. Not the plugin's own name: that has to stay free, or Docker takes it for a built-in one.
const registered = "under-test"

var (
	socketPath = os.Getenv("REFLINKD_SOCKET")
	limits     = os.Getenv("REFLINKD_LIMITS")
	builtin    = os.Getenv("GRAPHDRIVER")
)

// Who makes a promise that a test holds a driver to.
type promise int

const (
	dockers promise = iota // Docker's own drivers, too.
	ours                   // Only this project.
)

// In this order: Setup and Teardown keep one driver for all that is between them.
var table = []struct {
	name string
	by   promise
	run  func(*testing.T)
}{
	{"Activate", ours, testActivate},
	{"Setup", dockers, func(t *testing.T) { graphtest.GetDriver(t, registered) }},
	{"CreateEmpty", dockers, func(t *testing.T) { graphtest.DriverTestCreateEmpty(t, registered) }},
	{"CreateBase", dockers, func(t *testing.T) { graphtest.DriverTestCreateBase(t, registered) }},
	{"CreateSnap", dockers, func(t *testing.T) { graphtest.DriverTestCreateSnap(t, registered) }},
	{"DeepLayerRead128", dockers, func(t *testing.T) { graphtest.DriverTestDeepLayerRead(t, 128, registered) }},
	{"DiffApply10", dockers, func(t *testing.T) { graphtest.DriverTestDiffApply(t, 10, registered) }},
	{"DiffApply1000", dockers, func(t *testing.T) { graphtest.DriverTestDiffApply(t, 1000, registered) }},
	{"Changes", dockers, func(t *testing.T) { graphtest.DriverTestChanges(t, registered) }},
	{"SetQuota", dockers, testSetQuota},
	{"LimitBelowImage", ours, testLimitBelowImage},
	{"UnknownOption", dockers, testUnknownOption},
	{"RefusalLeavesNothing", ours, testRefusalLeavesNothing},
	{"ContainerUntouched", dockers, testContainerUntouched},
	{"ContainerWritten", dockers, testContainerWritten},
	{"ContainerCommit", dockers, testContainerCommit},
	{"ContainerInitEdited", dockers, testContainerInitEdited},
	{"RemoveInitLast", dockers, testRemoveInitLast},
	{"RemoveInitFirst", dockers, testRemoveInitFirst},
	{"RemoveTwice", dockers, testRemoveTwice},
	{"CreateRetried", ours, testCreateRetried},
	{"PutWithoutGet", dockers, testPutWithoutGet},
	{"GetAgain", dockers, testGetAgain},
	{"Missing", dockers, testMissing},
	{"MissingRefused", ours, testMissingRefused},
	{"ApplyTree", dockers, testApplyTree},
	{"ApplyTruncated", dockers, testApplyTruncated},
	{"ApplyTruncatedLeavesNothing", ours, testApplyTruncatedLeavesNothing},
	{"ApplyBrokenOff", dockers, testApplyBrokenOff},
	{"DiffExact", ours, testDiffExact},
	{"DiffExactAgain", ours, testDiffExactAgain},
	{"Rows", ours, testRows},
	{"EmptyRequest", ours, testEmptyRequest},
	{"Restarted", ours, testRestarted},
	{"KilledWhileApplying", ours, testKilledWhileApplying},
	{"Sixteen", dockers, testSixteen},
	{"Teardown", dockers, testTeardown},
}

func TestMain(m *testing.M) {
	// 20.10's own drivers unpack in a process of their own, which is this program again.
	if !reexec.Init() {
		os.Exit(m.Run())
	}
}

func TestDriver(t *testing.T) {
	if builtin == "" && socketPath == "" {
		t.Fatal("REFLINKD_SOCKET isn't set: where does the plugin listen?")
	}
	if limits != "held" && limits != "refused" {
		t.Fatalf("REFLINKD_LIMITS is %q: it has to be held or refused", limits)
	}
	for _, test := range table {
		if builtin != "" && test.by == ours {
			continue
		}
		if !t.Run(test.name, test.run) && test.name == "Setup" {
			t.Fatal("without a driver there is nothing to test")
		}
	}
}

// The driver between Setup and Teardown; one of its own for a test that runs alone.
func driver(t *testing.T) graphdriver.Driver {
	d := graphtest.GetDriver(t, registered)
	t.Cleanup(func() { graphtest.PutDriver(t) })
	return d
}

// Removes all that the suite's tests have left, the youngest first.
func testTeardown(t *testing.T) {
	for _, id := range underTest.left() {
		if err := underTest.Remove(id); err != nil {
			t.Errorf("remove %s: %v", id, err)
		}
		if underTest.Exists(id) {
			t.Errorf("%s exists, and was removed", id)
		}
	}
	graphtest.PutDriver(t)
}

func testActivate(t *testing.T) {
	client, err := dial()
	ok(t, err)
	var manifest plugins.Manifest
	ok(t, client.Call("Plugin.Activate", nil, &manifest))
	same(t, "what the plugin implements", manifest.Implements, []string{"GraphDriver"})
}

// The connected driver, which knows what was created and not removed.
var underTest *recorder

type recorder struct {
	graphdriver.Driver
	lock sync.Mutex
	ids  []string
}

// connect is what the registered driver does on its initialisation: it lets Docker look the plugin up and speak to it.
func connect(options graphdriver.Options) (graphdriver.Driver, error) {
	name, getter := builtin, plugingetter.PluginGetter(nil)
	if builtin == "" {
		client, err := dial()
		if err != nil {
			return nil, err
		}
		name, getter = "reflinkd", socket{client}
	}
	if builtin != "" {
		if err := os.MkdirAll(options.Root, 0o755); err != nil {
			return nil, err
		}
	}
	options.ExperimentalEnabled = true
	d, err := graphdriver.GetDriver(name, getter, options)
	if err != nil {
		// Not wrapped: the suite would skip what isn't supported, and pass.
		return nil, fmt.Errorf("no driver %s: %v", name, err)
	}
	underTest = &recorder{Driver: d}
	return underTest, nil
}

func (r *recorder) Create(id, parent string, opts *graphdriver.CreateOpts) error {
	r.created(id)
	return r.Driver.Create(id, parent, opts)
}

func (r *recorder) CreateReadWrite(id, parent string, opts *graphdriver.CreateOpts) error {
	r.created(id)
	return r.Driver.CreateReadWrite(id, parent, opts)
}

func (r *recorder) Remove(id string) error {
	err := r.Driver.Remove(id)
	if err == nil {
		r.lock.Lock()
		defer r.lock.Unlock()
		r.ids = without(r.ids, id)
	}
	return err
}

// Before it is: a create that fails half-way may leave something, too.
func (r *recorder) created(id string) {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.ids = append(without(r.ids, id), id)
}

func (r *recorder) left() []string {
	r.lock.Lock()
	defer r.lock.Unlock()
	var ids []string
	for i := len(r.ids) - 1; i >= 0; i-- {
		ids = append(ids, r.ids[i])
	}
	return ids
}

func without(ids []string, id string) []string {
	var kept []string
	for _, other := range ids {
		if other != id {
			kept = append(kept, other)
		}
	}
	return kept
}

// A plugin as dockerd finds one at a socket, without looking below /run/docker/plugins.
type socket struct{ client *plugins.Client }

func dial() (*plugins.Client, error) { return plugins.NewClient("unix://"+socketPath, nil) }

func (s socket) Name() string                 { return "reflinkd" }
func (s socket) ScopedPath(dir string) string { return dir }
func (s socket) IsV1() bool                   { return true }
func (s socket) Client() *plugins.Client      { return s.client }

func (s socket) Get(string, string, int) (plugingetter.CompatPlugin, error)   { return s, nil }
func (s socket) GetAllByCap(string) ([]plugingetter.CompatPlugin, error)      { return nil, nil }
func (s socket) GetAllManagedPluginsByCap(string) []plugingetter.CompatPlugin { return nil }
func (s socket) Handle(string, func(string, *plugins.Client))                 {}
