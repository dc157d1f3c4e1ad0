// Package v2 stands in for Docker's managed plugins, which Debian's -dev package of 20.10 leaves out and that of 26.1 has with
// half of containerd. The proxy only asks whether a plugin is one; ours never is.
package v2

import "github.com/docker/docker/pkg/plugingetter"

// Plugin has what the proxy reads of one.
type Plugin struct {
	plugingetter.CompatPlugin
	PluginObj struct {
		Config struct{ PropagatedMount string }
	}
}
