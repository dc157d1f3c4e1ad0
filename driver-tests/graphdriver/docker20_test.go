//go:build !docker26
// +build !docker26

package graphdriver

import (
	"github.com/docker/docker/daemon/graphdriver"
	"github.com/docker/docker/pkg/containerfs"
	"github.com/docker/docker/pkg/idtools"
)

// What Docker 20.10 writes otherwise than 26.1.

func init() {
	must(graphdriver.Register(registered, func(home string, options []string, uids, gids []idtools.IDMap) (graphdriver.Driver, error) {
		return connect(graphdriver.Options{Root: home, DriverOptions: options, UIDMaps: uids, GIDMaps: gids})
	}))
}

func pathOf(root containerfs.ContainerFS) string { return root.Path() }
