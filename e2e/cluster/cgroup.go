package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// hierarchies are the mount points of the machine's control groups: one for
// each controller with version 1, one for all with version 2.
func hierarchies() (folders []string, unified bool, err error) {
	mounts, err := readMounts("/proc/self/mountinfo")
	if err != nil {
		return nil, false, err
	}
	seen := map[string]bool{}
	for _, mount := range mounts {
		if mount.kind == "cgroup" && !seen[mount.options] {
			seen[mount.options] = true
			folders = append(folders, mount.point)
		}
	}
	if len(folders) > 0 {
		// With version 1 beside an empty version 2 (systemd's hybrid layout), version 1 does the work.
		return folders, false, nil
	}
	for _, mount := range mounts {
		if mount.kind == "cgroup2" {
			return []string{mount.point}, true, nil
		}
	}
	return nil, false, errors.New("this machine has no control groups mounted: mount them at /sys/fs/cgroup")
}

// allHierarchies are the mount points of both versions: where version 2 stands
// beside version 1, runc makes folders there, too.
func allHierarchies() ([]string, error) {
	mounts, err := readMounts("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var folders []string
	for _, mount := range mounts {
		if mount.kind == "cgroup" || mount.kind == "cgroup2" {
			folders = append(folders, mount.point)
		}
	}
	return folders, nil
}

type mount struct{ point, kind, options string }

// readMounts parses mountinfo; see proc_pid_mountinfo(5).
func readMounts(path string) ([]mount, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var mounts []mount
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		before, after, found := strings.Cut(lines.Text(), " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if !found || len(fields) < 5 || len(rest) < 3 {
			return nil, fmt.Errorf("parse %s: unexpected line %q", path, lines.Text())
		}
		// The kernel writes blanks in paths as \040 and so on.
		point := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(fields[4])
		mounts = append(mounts, mount{point, rest[0], rest[2]})
	}
	return mounts, lines.Err()
}

// joinCgroup puts the calling process into the cluster's control group, which
// it makes first. The programs live in a folder beside the kubelet's, because
// version 2 wants processes in leaves only.
func joinCgroup(name string) error {
	folders, unified, err := hierarchies()
	if err != nil {
		return err
	}
	for _, hierarchy := range folders {
		top := filepath.Join(hierarchy, name)
		leaf := filepath.Join(top, "programs")
		for _, folder := range []string{top, leaf} {
			if err := os.Mkdir(folder, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make a control group: %w", err)
			}
			if err := prepareCgroup(folder, unified); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join a control group: %w", err)
		}
	}
	return nil
}

// prepareCgroup makes a new folder usable: with version 1 it starts without
// processors and memory nodes, with version 2 without controllers.
func prepareCgroup(folder string, unified bool) error {
	parent := filepath.Dir(folder)
	if unified {
		controllers, err := os.ReadFile(filepath.Join(parent, "cgroup.controllers"))
		if err != nil {
			return fmt.Errorf("read a control group's controllers: %w", err)
		}
		for _, controller := range strings.Fields(string(controllers)) {
			// One that cannot be handed down now is missed by name later, by the kubelet.
			_ = os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+"+controller), 0)
		}
		return nil
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, file))
		if errors.Is(err, fs.ErrNotExist) {
			continue // another controller's hierarchy
		}
		if err != nil {
			return fmt.Errorf("read a control group's processors: %w", err)
		}
		if err := os.WriteFile(filepath.Join(folder, file), value, 0); err != nil {
			return fmt.Errorf("hand processors to a control group: %w", err)
		}
	}
	return nil
}

// cgroupFolders are the cluster's folders in all hierarchies, deepest first.
func cgroupFolders(name string) ([]string, error) {
	roots, err := allHierarchies()
	if err != nil {
		return nil, err
	}
	var folders []string
	for _, hierarchy := range roots {
		err := filepath.WalkDir(filepath.Join(hierarchy, name), func(path string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // gone while we walked
			}
			if err == nil && entry.IsDir() {
				folders = append(folders, path)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(folders, func(a, b string) int { return strings.Count(b, "/") - strings.Count(a, "/") })
	return folders, nil
}

// cgroupProcesses are the ids of all processes in the cluster's control groups.
func cgroupProcesses(name string) ([]int, error) {
	folders, err := cgroupFolders(name)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, folder := range folders {
		content, err := os.ReadFile(filepath.Join(folder, "cgroup.procs"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENODEV) {
			return nil, err
		}
		for _, line := range strings.Fields(string(content)) {
			pid, err := strconv.Atoi(line)
			if err == nil && pid > 1 && !slices.Contains(pids, pid) {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// removeCgroup ends what still lives in the cluster's control groups and removes their folders.
func removeCgroup(ctx context.Context, name string) error {
	return poll(ctx, 30*time.Second, "the processes of control group "+name+" to end", func() (bool, error) {
		pids, err := cgroupProcesses(name)
		if err != nil {
			return false, err
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		folders, err := cgroupFolders(name)
		if err != nil {
			return false, err
		}
		left := 0
		for _, folder := range folders {
			if err := os.Remove(folder); err != nil && !errors.Is(err, fs.ErrNotExist) {
				left++
			}
		}
		return left == 0, nil
	})
}
