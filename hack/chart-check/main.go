// Program chart-check looks at what a rendered chart says about other things than Kubernetes' schemas:
// that dashboards and alerts are readable and ask for metrics that the sources register,
// and that selectors select the pods that they are meant for, as the operator's golden cases have them.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

const usage = "usage: chart-check CHECKOUT RENDERED.yaml..."

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "chart-check: %v\n", err)
		os.Exit(1)
	}
}

func run(checkout string, rendered []string) error {
	metrics, err := readMetrics(checkout)
	if err != nil {
		return err
	}
	pods, err := goldenPods(filepath.Join(checkout, "operator", "tests", "cases"))
	if err != nil {
		return err
	}
	var faults []error
	for _, path := range rendered {
		objects, err := readObjects(path)
		if err != nil {
			return err
		}
		for _, object := range objects {
			faults = append(faults, checkMetrics(object, metrics), checkSelectors(object, append(operatorPods(objects), pods...)))
		}
	}
	return errors.Join(faults...)
}

// object is one document of YAML.
type object map[string]any

func (o object) kind() string { return text(o["kind"]) }
func (o object) name() string { return text(at(o, "metadata", "name")) }
func (o object) title() string {
	return strings.TrimSpace(o.kind() + " " + o.name())
}

func readObjects(path string) ([]object, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var objects []object
	for part := range strings.SplitSeq(string(content), "\n---\n") {
		var found object
		if err := yaml.Unmarshal([]byte(part), &found); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if found != nil {
			objects = append(objects, found)
		}
	}
	return objects, nil
}

// at walks down maps; what is not there is nil.
func at(value any, keys ...string) any {
	for _, key := range keys {
		switch inner := value.(type) {
		case object:
			value = inner[key]
		case map[string]any:
			value = inner[key]
		default:
			return nil
		}
	}
	return value
}

func text(value any) string {
	found, _ := value.(string)
	return found
}

func list(value any) []any {
	found, _ := value.([]any)
	return found
}
