package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Options are what a person chose when the cluster was started.
type Options struct {
	FakeNodes    int    `json:"fakeNodes"`
	GPUs         int    `json:"gpus"`
	GPUProduct   string `json:"gpuProduct"`
	GPUMemoryMiB int    `json:"gpuMemoryMiB"`
	Audit        bool   `json:"audit"`
	NoNode       bool   `json:"noNode"`
}

func (o Options) check() error {
	if o.FakeNodes < 0 || o.FakeNodes > 1000 {
		return fmt.Errorf("--fake-nodes is %d: choose 0 to 1000", o.FakeNodes)
	}
	if o.GPUs < 0 || o.GPUs > 64 {
		return fmt.Errorf("--gpus is %d: choose 0 to 64", o.GPUs)
	}
	if o.NoNode && (o.GPUs > 0 || o.FakeNodes > 0) {
		return fmt.Errorf("--no-node leaves nothing for --gpus and --fake-nodes to add to: choose one")
	}
	return nil
}

func (o Options) String() string {
	text := ""
	if o.FakeNodes > 0 {
		text += fmt.Sprintf(" --fake-nodes %d", o.FakeNodes)
	}
	if o.GPUs > 0 {
		text += fmt.Sprintf(" --gpus %d (%s, %d MiB)", o.GPUs, o.GPUProduct, o.GPUMemoryMiB)
	}
	if o.Audit {
		text += " --audit"
	}
	if o.NoNode {
		text += " --no-node"
	}
	if text == "" {
		return "no options"
	}
	return text[1:]
}

// Record is what a cluster is: written before the first thing is created, and read by the node.
type Record struct {
	Options Options `json:"options"`
	Subnet  Subnet  `json:"subnet"`
	Bin     string  `json:"bin"`
}

// read returns nil where no record was written.
func readRecord(state State) (*Record, error) {
	content, err := os.ReadFile(state.record())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the cluster's record: %w", err)
	}
	record := &Record{}
	if err := json.Unmarshal(content, record); err != nil {
		return nil, fmt.Errorf("read the cluster's record %s: %w; take the cluster down and start it again", state.record(), err)
	}
	return record, nil
}

func (r Record) write(state State) error {
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(state.record(), append(content, '\n'), 0o644)
}

// writeFile puts a whole file in place or none: a reader never sees half of it.
func writeFile(path string, content []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	partial := path + ".partial"
	if err := os.WriteFile(partial, content, mode); err != nil {
		return err
	}
	return os.Rename(partial, path)
}
