# The targets are one line each; what they do is in driver-tests/. Run `make` for the list.

PREFIX ?= /usr/local
DESTDIR ?=
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
BIN := $(TARGET)/release/reflinkd
SHARE := $(DESTDIR)$(PREFIX)/share
UNITS := $(DESTDIR)$(PREFIX)/lib/systemd/system

.DEFAULT_GOAL := help
.PHONY: help demo test test-registry test-clients test-docker test-docker-faults test-graphdriver test-containerd test-containerd-faults test-snapshotter test-full-disks test-hardening test-deb test-proto test-full crashtest soak fuzz audit vmtest vmtest-quick vm-shell vm-lock proto lint bench bench-pull bench-docker bench-containerd build image deb install uninstall clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Build all of it and run five containers of a real nginx image (needs root)
	@driver-tests/demo/run.sh

test: ## Run every test suite on real loop devices (needs root)
	@driver-tests/tools/test.sh

test-registry: ## Pull from Debian's docker-registry, and push to it, with skopeo, podman, buildah and Docker: LANE=token QUICK=1 (needs root)
	@driver-tests/registry/run.sh $(if $(QUICK),--quick) $(if $(LANE),--lane $(LANE))

test-clients: ## Have real podman and Docker load, run and save again what `save` wrote (needs root)
	@driver-tests/clients/save.sh

test-docker: ## Hold Docker 20.10 and 26.1 to their own behaviour on the storage driver of `serve` (needs root)
	@driver-tests/docker/run.sh

test-docker-faults: ## Kill both daemons again and again, fill the disk, break layers off: FS=xfs KILLS=50 (needs root)
	@driver-tests/docker/faults.sh --fs $(or $(FS),btrfs) --kills $(or $(KILLS),50)

test-graphdriver: ## Hold the Docker plugin to Docker's own conformance suite, and more: GROUND="simple xfs" (needs root)
	@driver-tests/graphdriver/run.sh

test-containerd: ## Hold containerd, Docker 28 and CRI on `serve` to what they do: GROUND="simple xfs" LANE=docker QUICK=1 (needs root)
	@driver-tests/containerd/run.sh $(if $(QUICK),--quick) $(if $(GROUND),--ground $(GROUND)) $(if $(CONTAINERD),--containerd $(CONTAINERD)) $(if $(LANE),--lane $(LANE))

test-containerd-faults: ## Kill containerd and the server again and again under load: GROUND=xfs KILLS=50 (needs root)
	@driver-tests/containerd/run.sh --lane faults --ground $(or $(GROUND),simple) --kills $(or $(KILLS),50)

test-snapshotter: ## Hold the containerd snapshotter to containerd's own conformance suite, and more: GROUND="simple xfs" (needs root)
	@driver-tests/containerd/run.sh --lane suite --seconds $(or $(SECONDS),60) $(if $(GROUND),--ground $(GROUND))

test-hardening: ## Start the unit in a systemd of its own, hold its settings to what they forbid, and ask it confined (needs root)
	@driver-tests/hardening/run.sh

test-deb: ## Install the Debian package in a clean Debian, use it, and remove it again (needs root)
	@driver-tests/deb/run.sh

test-full-disks: ## Run every verb on full disks, at size limits, and in pools whose host is full, in all combinations (needs root)
	@driver-tests/disks/run.sh

test-full: ## Let every step of every verb fail, as on a full, limited or broken disk (needs root)
	@driver-tests/full/run.sh

crashtest: ## Cut the power at many points under load, and see what is left: FS="simple xfs" CUTS=500 SEED=7 (needs root)
	@driver-tests/crash/run.sh $(if $(FS),--fs $(FS)) $(if $(CUTS),--cuts $(CUTS)) $(if $(SEED),--seed $(SEED)) $(if $(KEEP),--keep) $(if $(CUT),--again --cut $(CUT))

soak: ## Use all front doors at once for MINUTES=30, and see that nothing is lost or grows: FS="simple xfs" SEED=7 (needs root)
	@driver-tests/soak/run.sh $(if $(FS),--fs $(FS)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(if $(WORKERS),--workers $(WORKERS)) $(if $(LEAK),--leak $(LEAK))

fuzz: ## Fuzz layers, archives, manifests and what is said at doors: MINUTES=20, TARGETS="tar plugin" (needs root)
	@driver-tests/fuzz/run.sh

audit: ## Hold what is linked in to deny.toml: licences, bans, sources; holes where RustSec can be asked (ADVISORIES=1: must be)
	@driver-tests/tools/audit.sh

vmtest: ## Boot Debian's kernels and run the suites in them: K="5.10 6.1"; FS=xfs-prjquota; LANE=docker
	@driver-tests/vm/run.sh

vmtest-quick: ## Boot one kernel, and run there what this machine's own kernel can't show
	@driver-tests/vm/run.sh quick

vm-shell: ## Get a shell in a guest, with a filesystem of the matrix at /mnt: K=6.1 FS=btrfs
	@driver-tests/vm/run.sh shell

vm-lock: ## Ask Debian for the present kernels and tools, and write vm-images/packages.lock
	@driver-tests/vm/run.sh lock

test-proto: ## See whether the code of containerd's services is what its protos give
	@driver-tests/tools/proto.sh check

proto: ## Write the code of containerd's services anew, from its protos in driver-tests/proto
	@driver-tests/tools/proto.sh

lint: ## Check the format and run clippy; warnings are errors
	@driver-tests/tools/lint.sh

bench: ## Measure this project, the floor and its peers on one filesystem (needs root)
	@driver-tests/bench/run.sh

bench-pull: ## Measure pulls from a registry on loopback, beside load, podman and Docker: part of bench (needs root)
	@driver-tests/bench/pull.sh

bench-docker: ## Measure Docker on this project's plugin, its btrfs and its overlay2 on one filesystem (needs root)
	@driver-tests/bench/docker.sh

bench-containerd: ## Measure this project's containerd snapshotter, its btrfs and its overlayfs on one filesystem (needs root)
	@driver-tests/bench/containerd.sh

build: ## Build the release binary
	@driver-tests/tools/build.sh

image: ## Build the container image with the static program, as target/image/reflinkd.tar
	@driver-tests/tools/image.sh

deb: ## Build the Debian package, below target/debian/ (installs cargo-deb below target/)
	@driver-tests/deb/build.sh

install: ## Install binary, man pages and completions below PREFIX (after: make build)
	@test -x $(BIN) || { echo 'error: $(BIN) is missing: run make build first' >&2; exit 1; }
	install -D -m 755 $(BIN) $(DESTDIR)$(PREFIX)/bin/reflinkd
	install -d $(SHARE)/man/man1 $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions \
		$(SHARE)/fish/vendor_completions.d
	$(BIN) man $(SHARE)/man/man1
	$(BIN) completions bash >$(SHARE)/bash-completion/completions/reflinkd
	$(BIN) completions zsh >$(SHARE)/zsh/site-functions/_reflinkd
	$(BIN) completions fish >$(SHARE)/fish/vendor_completions.d/reflinkd.fish
	install -d $(UNITS)
	for unit in $(notdir $(wildcard packaging/systemd/*)); do \
		sed 's,/usr/bin/,$(PREFIX)/bin/,' packaging/systemd/$$unit >$(UNITS)/$$unit || exit 1; done

uninstall: ## Remove what install put below PREFIX
	rm -f $(DESTDIR)$(PREFIX)/bin/reflinkd $(SHARE)/man/man1/reflinkd*.1 \
		$(SHARE)/bash-completion/completions/reflinkd $(SHARE)/zsh/site-functions/_reflinkd \
		$(SHARE)/fish/vendor_completions.d/reflinkd.fish
	rm -f $(addprefix $(UNITS)/,$(notdir $(wildcard packaging/systemd/*)))

clean: ## End what the demo and bench left, destroy the demo's pool, remove target/
	@driver-tests/tools/clean.sh
