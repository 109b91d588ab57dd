package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestReadsMountsWithBlanksAndOptionalFields(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mountinfo")
	content := `24 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 master:1 - cgroup cgroup rw,cpu,cpuacct
40 24 0:50 / /mnt/two\040words rw - tmpfs tmpfs rw
`
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := readMounts(file)
	if err != nil {
		t.Fatal(err)
	}
	want := []mount{{"/", "ext4", "rw"}, {"/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct"}, {"/mnt/two words", "tmpfs", "rw"}}
	if !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
}
