package argocd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const kinds = "resource_customizations/chandler.dev"

// The format is Argo CD's own.
type cases struct {
	Tests []struct {
		InputPath    string `json:"inputPath"`
		HealthStatus Health `json:"healthStatus"`
	} `json:"tests"`
}

func TestHealthIsWhatTheCasesSay(t *testing.T) {
	folders, err := filepath.Glob(kinds + "/*")
	if err != nil || len(folders) == 0 {
		t.Fatalf("no kinds in %s: %v", kinds, err)
	}
	for _, folder := range folders {
		kind := filepath.Base(folder)
		used := map[string]bool{}
		var wanted cases
		read(t, filepath.Join(folder, "health_test.yaml"), &wanted)
		for _, test := range wanted.Tests {
			used[filepath.Base(test.InputPath)] = true
			t.Run(kind+"/"+filepath.Base(test.InputPath), func(t *testing.T) {
				var object map[string]any
				read(t, filepath.Join(folder, test.InputPath), &object)
				if object["kind"] != kind {
					t.Fatalf("the case is a %v", object["kind"])
				}
				health, err := Run(Script(kind), object)
				if err != nil {
					t.Fatal(err)
				}
				if health != test.HealthStatus {
					t.Errorf("got %+v, want %+v", health, test.HealthStatus)
				}
			})
		}
		inputs, err := filepath.Glob(folder + "/testdata/*.yaml")
		if err != nil {
			t.Fatal(err)
		}
		for _, input := range inputs {
			if !used[filepath.Base(input)] {
				t.Errorf("no case uses %s", input)
			}
		}
	}
}

func TestEveryStatusThatHasAMeaningHasACase(t *testing.T) {
	for _, kind := range []string{"ModelDeployment", "ModelCache"} {
		var wanted cases
		read(t, filepath.Join(kinds, kind, "health_test.yaml"), &wanted)
		seen := map[string]bool{}
		for _, test := range wanted.Tests {
			seen[test.HealthStatus.Status] = true
		}
		for _, status := range []string{"Healthy", "Progressing", "Degraded"} {
			if !seen[status] {
				t.Errorf("%s has no case that is %s", kind, status)
			}
		}
	}
}

func TestAScriptFindsNoMoreThanArgoCDGives(t *testing.T) {
	for _, script := range []string{"return { status = string.upper('x') }", "return { status = tostring(math.pi) }", "io.open('x')", "os.exit(1)", "return 1", "return { status = 'Fine' }", "while true do end"} {
		if health, err := Run(script, map[string]any{}); err == nil {
			t.Errorf("%q ran and gave %+v", script, health)
		}
	}
}

func TestThePatchHoldsTheScripts(t *testing.T) {
	var patch struct {
		APIVersion string            `json:"apiVersion"`
		Kind       string            `json:"kind"`
		Metadata   map[string]string `json:"metadata"`
		Data       map[string]string `json:"data"`
	}
	text, err := os.ReadFile("argocd-cm-patch.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(text, &patch); err != nil {
		t.Fatal(err)
	}
	if patch.Kind != "ConfigMap" || patch.Metadata["name"] != "argocd-cm" || patch.Metadata["namespace"] != "argocd" {
		t.Errorf("the patch is of %s %v", patch.Kind, patch.Metadata)
	}
	folders, err := filepath.Glob(kinds + "/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range folders {
		kind := filepath.Base(folder)
		key := "resource.customizations.health.chandler.dev_" + kind
		if strings.TrimSpace(patch.Data[key]) != strings.TrimSpace(Script(kind)) {
			t.Errorf("%s is not %s/health.lua; run: make generate", key, folder)
		}
		delete(patch.Data, key)
	}
	if len(patch.Data) > 0 {
		t.Errorf("the patch holds more: %v", patch.Data)
	}
}

func read(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}
