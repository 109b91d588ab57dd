package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

func TestEverySettingsFileIsRenderedAndNamesTheState(t *testing.T) {
	state := State(t.TempDir())
	record := Record{Bin: "/programs"}
	if err := writeSettings(state, record); err != nil {
		t.Fatal(err)
	}
	for source, target := range settingsTargets {
		content, err := os.ReadFile(state.path(target))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(content), "{{") || strings.Contains(string(content), "<no value>") {
			t.Errorf("%s was not rendered: %s", source, content)
		}
		switch {
		case strings.HasSuffix(source, ".yaml"):
			parsed := map[string]any{}
			if err := yaml.Unmarshal(content, &parsed); err != nil || parsed["kind"] == nil {
				t.Errorf("%s is no configuration: %v", source, err)
			}
		case strings.HasSuffix(source, ".conflist"):
			if !json.Valid(content) {
				t.Errorf("%s is no JSON", source)
			}
		}
	}
	kubelet, err := os.ReadFile(state.path("settings/kubelet.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, needed := range []string{"unix://" + state.containerdSocket(), `cgroupRoot: "/` + state.cgroup()} {
		if !strings.Contains(string(kubelet), needed) {
			t.Errorf("kubelet.yaml lacks %s", needed)
		}
	}
}

func TestEveryAddonIsAListOfNamedObjects(t *testing.T) {
	facts := addonFactsOf(State("/state"), Record{Bin: "/programs"})
	for _, file := range []string{"coredns.yaml", "probe.yaml", "local-path.yaml"} {
		content, err := render("addons/"+file, addonFiles, facts)
		if err != nil {
			t.Fatal(err)
		}
		decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(string(content)), 4096)
		objects := 0
		for {
			object := &unstructured.Unstructured{}
			if err := decoder.Decode(&object.Object); err != nil {
				if errors.Is(err, io.EOF) {
					break
				}
				t.Fatalf("%s: %v", file, err)
			}
			if object.GetKind() == "" || object.GetName() == "" {
				t.Errorf("%s holds an object without kind or name: %v", file, object)
			}
			objects++
		}
		if objects == 0 {
			t.Errorf("%s is empty", file)
		}
	}
}

func TestOptionsOutOfRangeAreRefused(t *testing.T) {
	for _, options := range []Options{{FakeNodes: -1}, {FakeNodes: 1001}, {GPUs: -1}, {GPUs: 65}} {
		if options.check() == nil {
			t.Errorf("took %+v", options)
		}
	}
	if err := (Options{FakeNodes: 5, GPUs: 8, Audit: true}).check(); err != nil {
		t.Error(err)
	}
}
