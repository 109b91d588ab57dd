package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
)

// down ends the cluster and removes everything that belongs to it. It finds
// all of it by name, so it may be repeated, and works after an up or a down
// that was killed, and where the state folder's content is lost.
func down(ctx context.Context, state State) error {
	if os.Geteuid() != 0 {
		return errNotRoot
	}
	say := func(text string) { fmt.Fprintf(os.Stderr, "cluster %s: %s\n", state.name(), text) }
	lock, err := state.lock(ctx, say)
	if err != nil {
		return err
	}
	defer lock.Close()
	was := state.running()
	if err := sweep(ctx, state); err != nil {
		return err
	}
	// The lock's file goes last, while the lock is held.
	if err := os.RemoveAll(string(state)); err != nil {
		return fmt.Errorf("remove the state folder: %w", err)
	}
	_ = os.Remove(filepath.Dir(string(state))) // only where it was the last cluster
	if was {
		say("is down; nothing of it is left")
	} else {
		say("did not run; nothing of it is left")
	}
	return nil
}

// sweep removes everything but the lock's file.
func sweep(ctx context.Context, state State) error {
	if state.running() {
		// With the node's first process every process in its namespaces ends, and its mounts and its network go.
		if pid := state.nodePID(); pid > 1 {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("end the node's first process %d: %w", pid, err)
			}
		}
	}
	if err := removeCgroup(ctx, state.cgroup()); err != nil {
		return err
	}
	err := poll(ctx, 20*time.Second, "the node's first process to end", func() (bool, error) {
		return !state.running(), nil
	})
	if err != nil {
		return err
	}
	machine, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer machine.Close()
	// The kernel removes the pair some time after the namespace: whoever is first.
	err = poll(ctx, 20*time.Second, "the interface "+state.link()+" to go", func() (bool, error) {
		_ = removeLink(machine, state.link())
		_, err := machine.LinkByName(state.link())
		_, missing := err.(netlink.LinkNotFoundError)
		return missing, nil
	})
	if err != nil {
		return err
	}
	if err := unmountBelow(string(state)); err != nil {
		return err
	}
	entries, err := os.ReadDir(string(state))
	if err != nil {
		return fmt.Errorf("read the state folder: %w", err)
	}
	for _, entry := range entries {
		if entry.Name() == filepath.Base(state.path("lock")) {
			continue
		}
		if err := os.RemoveAll(state.path(entry.Name())); err != nil {
			return fmt.Errorf("remove the state folder's content: %w", err)
		}
	}
	return nil
}

// unmountBelow finds nothing, because the cluster's mounts are in a namespace
// of its own; it guards the removal of the folder against mounts made by hand.
func unmountBelow(folder string) error {
	mounts, err := readMounts("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	slices.Reverse(mounts)
	for _, mount := range mounts {
		if strings.HasPrefix(mount.point, folder+"/") {
			if err := syscall.Unmount(mount.point, syscall.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", mount.point, err)
			}
		}
	}
	return nil
}
