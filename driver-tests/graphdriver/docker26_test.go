//go:build docker26
// +build docker26

package graphdriver

import (
	"github.com/docker/docker/daemon/graphdriver"
	"github.com/docker/docker/pkg/idtools"
)

// What Docker 26.1 writes otherwise than 20.10.

func init() {
	must(graphdriver.Register(registered, func(home string, options []string, ids idtools.IdentityMapping) (graphdriver.Driver, error) {
		return connect(graphdriver.Options{Root: home, DriverOptions: options, IDMap: ids})
	}))
}

func pathOf(root string) string { return root }
