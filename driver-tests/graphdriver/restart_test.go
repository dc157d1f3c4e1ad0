package graphdriver

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/pkg/stringid"
)

// restart kills the server as nothing else would, and starts another. dockerd says nothing of what it said in the beginning again.
func restart() error {
	pidFile := os.Getenv("REFLINKD_PIDFILE")
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	// Until the last of its threads is gone, its socket is in use.
	for end := time.Now().Add(time.Minute); listening(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("process %d is killed, and doesn't end", pid)
		}
	}
	server := exec.Command(os.Getenv("REFLINKD_SERVE"))
	if err := server.Start(); err != nil {
		return err
	}
	go server.Wait()
	if err := os.WriteFile(pidFile, []byte(strconv.Itoa(server.Process.Pid)), 0o644); err != nil {
		return err
	}
	client, err := dial()
	if err != nil {
		return err
	}
	// What is sent on a connection that has just broken is sent once more as nothing at all (see testEmptyRequest); by now the
	// proxy knows of it.
	return client.Call("GraphDriver.Status", nil, nil)
}

func listening() bool {
	connection, err := net.Dial("unix", socketPath)
	if err == nil {
		connection.Close()
	}
	return err == nil
}

func testRestarted(t *testing.T) {
	d := driver(t)
	content := tarOf(t, everything()...)
	base := layer(t, d, "", everything()...)
	c := created(t, d, base)
	root := get(t, d, c.id)
	write(t, root, "kept", "kept\n")
	ok(t, restart())
	same(t, "where the container is", get(t, d, c.id), root)
	changesAre(t, d, c.id, c.init, "A /kept")
	isExact(t, d, "after a restart", base, "", content)
	other := created(t, d, base)
	write(t, get(t, d, other.id), "more", "more\n")
	changesAre(t, d, other.id, other.init, "A /more")
	t.Cleanup(func() { remove(t, d, other.id, other.init, c.id, c.init, base) })
}

// The proxy tries again after a broken connection, and by then the request's body has been read: it sends none.
func testEmptyRequest(t *testing.T) {
	d := driver(t)
	c := created(t, d, image(t, d))
	client, err := dial()
	ok(t, err)
	for _, call := range []string{"Init", "Create", "CreateReadWrite", "Get", "Remove", "Exists", "Diff", "Changes", "DiffSize", "GetMetadata"} {
		t.Log(call)
		refused(t, client.Call("GraphDriver."+call, nil, nil), "try again")
	}
	ok(t, client.Call("GraphDriver.Put", nil, nil))
	changesAre(t, d, c.id, c.init)
}

// Restarts the server when so many bytes have been read.
type killing struct {
	io.Reader
	left int
	err  error
}

func (k *killing) Read(to []byte) (int, error) {
	if k.left <= 0 {
		return k.Reader.Read(to)
	}
	if len(to) > k.left {
		to = to[:k.left]
	}
	n, err := k.Reader.Read(to)
	if k.left -= n; k.left <= 0 {
		k.err = restart()
	}
	return n, err
}

// The members are of one KiB each, and the blocks that are sent multiples of that: whatever the new server gets is a whole tar.
func testKilledWhileApplying(t *testing.T) {
	d := driver(t)
	var members []entry
	for n := 0; n < 4096; n++ {
		members = append(members, file(fmt.Sprintf("file-%d", n), "content\n"))
	}
	whole := tarOf(t, members...)
	for _, left := range []int{len(whole) / 2 &^ 1023, len(whole)} {
		id := stringid.GenerateRandomID()
		ok(t, d.Create(id, "", nil))
		stream := &killing{Reader: bytes.NewReader(whole), left: left}
		size, err := d.ApplyDiff(id, "", stream)
		ok(t, stream.err)
		if err == nil {
			files := len(tree(t, get(t, d, id)))
			if files != len(members) || size != int64(8*len(members)) {
				t.Errorf("killed after %d bytes, it gives a layer of %d files and %d bytes", left, files, size)
			}
		}
		t.Log(err)
		remove(t, d, id)
		id = layer(t, d, "", members...)
		same(t, "files after a new start", len(tree(t, get(t, d, id))), len(members))
	}
}
