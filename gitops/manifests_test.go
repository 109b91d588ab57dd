// Package gitops holds what tools of GitOps take: here it is shown that they would take it.
package gitops

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	helm "github.com/fluxcd/helm-controller/api/v2"
	kustomize "github.com/fluxcd/kustomize-controller/api/v1"
	source "github.com/fluxcd/source-controller/api/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/resmap"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// Flux refuses an object with a field that its types do not have.
func TestFluxKnowsEveryField(t *testing.T) {
	seen := map[string]int{}
	for _, text := range documents(t, "flux/kustomizations.yaml", "flux/chandler/release.yaml") {
		kind := field(t, text, "kind")
		seen[kind]++
		switch kind {
		case "Namespace":
		case "Kustomization":
			decode(t, text, &kustomize.Kustomization{}, kustomize.GroupVersion.String())
		case "HelmRelease":
			decode(t, text, &helm.HelmRelease{}, helm.GroupVersion.String())
		case "OCIRepository":
			decode(t, text, &source.OCIRepository{}, source.GroupVersion.String())
		default:
			t.Errorf("nothing checks a %s", kind)
		}
	}
	if seen["Kustomization"] != 2 || seen["HelmRelease"] != 1 || seen["OCIRepository"] != 1 {
		t.Errorf("the objects are %v", seen)
	}
}

func TestFluxWaitsForTheModelAsLongAsItsFetchTakes(t *testing.T) {
	models := kustomize.Kustomization{}
	for _, text := range documents(t, "flux/kustomizations.yaml") {
		if err := yaml.Unmarshal([]byte(text), &models); err != nil {
			t.Fatal(err)
		}
	}
	check := models.Spec.HealthChecks[0]
	wanted := fmt.Sprintf("%s %s %s/%s", check.APIVersion, check.Kind, check.Namespace, check.Name)
	found := false
	for _, text := range documents(t, "models/llama-vision.yaml") {
		var object struct {
			APIVersion string
			Kind       string
			Metadata   struct{ Name, Namespace string }
			Spec       map[string]any
		}
		if err := yaml.Unmarshal([]byte(text), &object); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprintf("%s %s %s/%s", object.APIVersion, object.Kind, object.Metadata.Namespace, object.Metadata.Name) == wanted {
			found = true
			if _, ok := object.Spec["replicas"]; ok {
				t.Error("Git and the autoscaler would fight for spec.replicas")
			}
		}
	}
	if !found {
		t.Errorf("models/ has no %s", wanted)
	}
	const bytes, bytesPerSecond = 21.3e9, 10e6
	if fetch := bytes / bytesPerSecond * float64(time.Second); models.Spec.Timeout.Duration < time.Duration(fetch) {
		t.Errorf("%v is shorter than a fetch of %v", models.Spec.Timeout, time.Duration(fetch))
	}
}

func TestTheChartKnowsTheValues(t *testing.T) {
	var known map[string]any
	read(t, "../charts/chandler/values.yaml", &known)
	count := 0
	for _, text := range documents(t, "flux/chandler/release.yaml", "argocd/applications.yaml") {
		var object struct {
			Spec struct {
				Values map[string]any
				Source struct {
					Helm struct {
						ValuesObject map[string]any `json:"valuesObject"`
					}
				}
			}
		}
		if err := yaml.Unmarshal([]byte(text), &object); err != nil {
			t.Fatal(err)
		}
		for _, values := range []map[string]any{object.Spec.Values, object.Spec.Source.Helm.ValuesObject} {
			if values != nil {
				count++
				within(t, "", values, known)
			}
		}
	}
	if count != 2 {
		t.Errorf("%d sets of values", count)
	}
}

func within(t *testing.T, path string, values, known map[string]any) {
	t.Helper()
	for name, value := range values {
		preset, found := known[name]
		if !found {
			t.Errorf("the chart has no value %s%s", path, name)
		}
		inner, ok := value.(map[string]any)
		if deeper, both := preset.(map[string]any); ok && both {
			within(t, path+name+".", inner, deeper)
		}
	}
}

func TestTheBaseIsOneFileThatStartsWithTheNamespace(t *testing.T) {
	kinds := []string{}
	for _, text := range documents(t, "install/install.yaml") {
		kinds = append(kinds, field(t, text, "kind"))
	}
	deployment := slices.Index(kinds, "Deployment")
	if deployment < 0 || kinds[0] != "Namespace" || slices.Contains(kinds[deployment:], "CustomResourceDefinition") {
		t.Errorf("applied in one go, the order must be Namespace … kinds … Deployment: %v", kinds)
	}
	if base := build(t, "install"); base.Size() != len(kinds) {
		t.Errorf("the base has %d objects of %d", base.Size(), len(kinds))
	}
}

func TestPruningNeverTakesTheDefinitions(t *testing.T) {
	count := 0
	for _, object := range build(t, "install").Resources() {
		if object.GetKind() != "CustomResourceDefinition" {
			continue
		}
		count++
		annotations := object.GetAnnotations()
		if annotations["kustomize.toolkit.fluxcd.io/prune"] != "disabled" || !strings.Contains(annotations["argocd.argoproj.io/sync-options"], "Prune=false") {
			t.Errorf("%s would be pruned, and with it every model: %v", object.GetName(), annotations)
		}
	}
	if count != 3 {
		t.Errorf("%d definitions", count)
	}
}

func TestTheOverlayTakesEveryImageFromTheRegistry(t *testing.T) {
	text, err := build(t, "kustomize").AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "chandler.dev/chandler-") {
		t.Error("an image is still the one of the base")
	}
	for _, image := range []string{"image: registry.example.com/team/chandler-operator:", "--runtime-image=registry.example.com/team/chandler-runtime:",
		"--runtime-cuda-image=registry.example.com/team/chandler-runtime-cuda:"} {
		if !strings.Contains(string(text), image) {
			t.Errorf("no %s", image)
		}
	}
}

func build(t *testing.T, folder string) resmap.ResMap {
	t.Helper()
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), folder)
	if err != nil {
		t.Fatalf("%s cannot be built: %v", folder, err)
	}
	return built
}

func read(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(filepath.FromSlash(path))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func documents(t *testing.T, paths ...string) []string {
	t.Helper()
	var found []string
	for _, path := range paths {
		text, err := os.ReadFile(filepath.FromSlash(path))
		if err != nil {
			t.Fatal(err)
		}
		for _, document := range strings.Split("\n"+string(text), "\n---\n") {
			if content := map[string]any{}; yaml.Unmarshal([]byte(document), &content) == nil && len(content) > 0 {
				found = append(found, document)
			}
		}
	}
	return found
}

func field(t *testing.T, text, name string) string {
	t.Helper()
	var object map[string]any
	if err := yaml.Unmarshal([]byte(text), &object); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(object[name])
}

func decode(t *testing.T, text string, into any, version string) {
	t.Helper()
	if err := yaml.UnmarshalStrict([]byte(text), into); err != nil {
		t.Errorf("%v in:\n%s", err, text)
	}
	if found := field(t, text, "apiVersion"); found != version {
		t.Errorf("%s instead of %s", found, version)
	}
}
