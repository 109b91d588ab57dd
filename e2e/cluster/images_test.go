package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestEqualProgramsGiveEqualImages(t *testing.T) {
	folder := t.TempDir()
	for program := range imageTags {
		content := "#!/bin/sh\necho '" + program + "'\necho ls\n"
		if err := os.WriteFile(filepath.Join(folder, program), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	to := [2]string{filepath.Join(folder, "one"), filepath.Join(folder, "two")}
	for _, each := range to {
		if err := packImages(folder, each); err != nil {
			t.Fatal(err)
		}
	}
	for program := range imageTags {
		one, err := os.ReadFile(filepath.Join(to[0], program+".tar"))
		if err != nil {
			t.Fatal(err)
		}
		two, err := os.ReadFile(filepath.Join(to[1], program+".tar"))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(one, two) {
			t.Errorf("packing %s twice gave different archives", program)
		}
	}
}

func TestNamesImagesByDigestOnce(t *testing.T) {
	list := `REF TYPE DIGEST SIZE PLATFORMS LABELS
chandler.dev/operator:dev application/vnd.oci.image.manifest.v1+json sha256:aa 11.5 MiB linux/amd64 -
chandler.dev/runtime:dev application/vnd.oci.image.manifest.v1+json sha256:bb 11.5 MiB linux/amd64 -
chandler.dev/runtime@sha256:bb application/vnd.oci.image.manifest.v1+json sha256:bb 11.5 MiB linux/amd64 -
10.96.0.50:5000/untagged@sha256:cc application/vnd.oci.image.manifest.v1+json sha256:cc 1 MiB linux/amd64 -
sha256:dd application/vnd.oci.image.manifest.v1+json sha256:aa 11.5 MiB linux/amd64 -
`
	want := [][2]string{{"chandler.dev/operator:dev", "chandler.dev/operator@sha256:aa"}}
	if got := missingDigestNames(list); !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
}
