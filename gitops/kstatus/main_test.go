package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const states = "../argocd/resource_customizations/chandler.dev"

// What each recorded state is to kstatus, and so to Flux.
var wanted = map[string]string{
	"ModelDeployment/no_status":                 "Current", // why the schema gives every object an observedGeneration of -1
	"ModelDeployment/just_created":              "InProgress",
	"ModelDeployment/fetching":                  "InProgress",
	"ModelDeployment/ready":                     "Current",
	"ModelDeployment/ready_before_the_change":   "InProgress",
	"ModelDeployment/stalled":                   "Failed",
	"ModelDeployment/stalled_before_the_change": "InProgress",
	"ModelDeployment/suspended":                 "Current",
	"ModelDeployment/suspending":                "InProgress",
	"ModelCache/no_status":                      "Current",
	"ModelCache/just_created":                   "InProgress",
	"ModelCache/fetching":                       "InProgress",
	"ModelCache/ready":                          "Current",
	"ModelCache/ready_before_the_change":        "InProgress",
	"ModelCache/stalled":                        "Failed",
}

// What a status is to Argo CD.
var health = map[string][]string{
	"Current":    {"Healthy", "Suspended"},
	"InProgress": {"Progressing"},
	"Failed":     {"Degraded"},
}

func TestEveryRecordedStateHasItsStatus(t *testing.T) {
	files, err := filepath.Glob(states + "/*/testdata/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(wanted) {
		t.Errorf("%d states, %d expectations", len(files), len(wanted))
	}
	for _, file := range files {
		name := filepath.Base(filepath.Dir(filepath.Dir(file))) + "/" + strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			results := judged(t, object(t, file))
			if len(results) != 1 || results[0].Status != wanted[name] {
				t.Fatalf("got %+v, want %q", results, wanted[name])
			}
			if strings.HasSuffix(name, "/no_status") {
				return
			}
			if shown := results[0].Health.Status; !strings.Contains(strings.Join(health[wanted[name]], " "), shown) {
				t.Errorf("%s is %s to Argo CD", wanted[name], shown)
			}
		})
	}
}

func TestAnObjectThatGoesIsTerminating(t *testing.T) {
	text := strings.Replace(object(t, states+"/ModelDeployment/testdata/ready.yaml"), `"metadata":{`, `"metadata":{"deletionTimestamp":"2026-11-20T08:00:00Z",`, 1)
	if results := judged(t, text); results[0].Status != "Terminating" {
		t.Errorf("got %+v", results)
	}
}

func TestManyLinesAreJudgedInTheirOrder(t *testing.T) {
	ready, fetching := object(t, states+"/ModelCache/testdata/ready.yaml"), object(t, states+"/ModelCache/testdata/fetching.yaml")
	results := judged(t, ready+"\n"+fetching+"\n"+ready)
	if len(results) != 3 || results[0].Status != "Current" || results[1].Status != "InProgress" || results[2].Status != "Current" {
		t.Errorf("got %+v", results)
	}
	if results[1].Message != "49 of 98 MB fetched" {
		t.Errorf("the message is not the object's: %q", results[1].Message)
	}
}

func TestALineThatIsNoObjectIsNamed(t *testing.T) {
	err := run(strings.NewReader(object(t, states+"/ModelCache/testdata/ready.yaml")+"\n{}\n"), &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("got %v", err)
	}
}

func object(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	line, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(line)
}

func judged(t *testing.T, lines string) []judgement {
	t.Helper()
	var out bytes.Buffer
	if err := run(strings.NewReader(lines), &out); err != nil {
		t.Fatal(err)
	}
	var results []judgement
	for decoder := json.NewDecoder(&out); decoder.More(); {
		var result judgement
		if err := decoder.Decode(&result); err != nil {
			t.Fatal(err)
		}
		results = append(results, result)
	}
	return results
}
