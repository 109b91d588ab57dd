package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// pod is what a selector sees of a pod: where it comes from, its part in the whole, its labels and its ports.
type pod struct {
	origin, part string
	labels       map[string]any
	ports        []port
}

type port struct {
	name   string
	number float64
}

// Which pods an object with a selector is meant for, by its kind and the end of its name; the bare name is the release's.
// Every part must be selected, and no other.
var meant = map[string][]string{
	"NetworkPolicy chandler":                {"operator"},
	"NetworkPolicy chandler-serve":          {"serve"},
	"NetworkPolicy chandler-fetch":          {"resolve", "fetch"},
	"NetworkPolicy chandler-fetch-progress": {"fetch"},
	"NetworkPolicy chandler-verify":         {"verify"},
	"PodMonitor chandler":                   {"operator"},
	"PodMonitor chandler-models":            {"serve"},
	"PodDisruptionBudget chandler":          {"operator"},
}

// goldenPods are those that the operator makes of models, from its golden cases.
func goldenPods(folder string) ([]pod, error) {
	files, err := filepath.Glob(filepath.Join(folder, "*", "objects.yaml"))
	if err != nil {
		return nil, err
	}
	var pods []pod
	parts := map[string]bool{}
	for _, file := range files {
		objects, err := readObjects(file)
		if err != nil {
			return nil, err
		}
		for _, object := range objects {
			for _, found := range podsIn(map[string]any(object), filepath.Base(filepath.Dir(file))) {
				found.part = text(found.labels["app.kubernetes.io/component"])
				parts[found.part] = true
				pods = append(pods, found)
			}
		}
	}
	for _, part := range []string{"serve", "resolve", "fetch"} {
		if !parts[part] {
			return nil, fmt.Errorf("no case under %s has a pod of %s", folder, part)
		}
	}
	return pods, nil
}

func operatorPods(objects []object) []pod {
	var pods []pod
	for _, object := range objects {
		if object.kind() == "Deployment" {
			pods = append(pods, podsIn(map[string]any(object), object.title())...)
		}
	}
	for index := range pods {
		pods[index].part = "operator"
	}
	return pods
}

// podsIn finds all pod templates, however deep they lie.
func podsIn(value any, origin string) []pod {
	var pods []pod
	switch inner := value.(type) {
	case map[string]any:
		if labels, ok := at(inner, "template", "metadata", "labels").(map[string]any); ok {
			pods = append(pods, pod{origin: origin, labels: labels, ports: portsOf(at(inner, "template", "spec"))})
		}
		for _, below := range inner {
			pods = append(pods, podsIn(below, origin)...)
		}
	case []any:
		for _, below := range inner {
			pods = append(pods, podsIn(below, origin)...)
		}
	}
	return pods
}

func portsOf(spec any) []port {
	var ports []port
	for _, container := range list(at(spec, "containers")) {
		for _, entry := range list(at(container, "ports")) {
			number, _ := at(entry, "containerPort").(float64)
			ports = append(ports, port{text(at(entry, "name")), number})
		}
	}
	return ports
}

// checkSelectors tries an object's selector on all pods, and looks for its ports in those that it is meant for.
func checkSelectors(object object, pods []pod) error {
	selector := at(object, "spec", "podSelector")
	if object.kind() == "PodMonitor" || object.kind() == "PodDisruptionBudget" {
		selector = at(object, "spec", "selector")
	}
	if selector == nil || !slices.Contains([]string{"NetworkPolicy", "PodMonitor", "PodDisruptionBudget"}, object.kind()) {
		return nil
	}
	parts, ok := meant[object.title()]
	if !ok {
		return fmt.Errorf("%s selects pods, and chart-check does not know which it is meant for", object.title())
	}
	var faults []error
	for _, pod := range pods {
		selected, err := selects(selector, pod.labels)
		if err != nil {
			return fmt.Errorf("%s: %w", object.title(), err)
		}
		wanted := slices.Contains(parts, pod.part)
		if selected != wanted {
			faults = append(faults, fmt.Errorf("%s selects the pods of %s (%s): %t, wanted: %t", object.title(), pod.part, pod.origin, selected, wanted))
		}
		if wanted {
			faults = append(faults, checkPorts(object, pod))
		}
	}
	return errors.Join(faults...)
}

func checkPorts(object object, pod pod) error {
	// Engines that are not ours have the API's port alone; what is meant for the other one finds nothing there.
	if pod.part == "serve" && !slices.ContainsFunc(pod.ports, func(port port) bool { return port.name == "management" }) {
		return nil
	}
	var wanted []any
	for _, endpoint := range list(at(object, "spec", "podMetricsEndpoints")) {
		wanted = append(wanted, at(endpoint, "port"))
	}
	for _, rule := range list(at(object, "spec", "ingress")) {
		for _, entry := range list(at(rule, "ports")) {
			wanted = append(wanted, at(entry, "port"))
		}
	}
	for _, one := range wanted {
		if !slices.ContainsFunc(pod.ports, func(port port) bool { return one == port.name || one == port.number }) {
			return fmt.Errorf("%s names the port %v, which the pods of %s (%s) do not have", object.title(), one, pod.part, pod.origin)
		}
	}
	return nil
}

func selects(selector any, labels map[string]any) (bool, error) {
	matchLabels, _ := at(selector, "matchLabels").(map[string]any)
	for key, value := range matchLabels {
		if labels[key] != value {
			return false, nil
		}
	}
	for _, expression := range list(at(selector, "matchExpressions")) {
		if operator := text(at(expression, "operator")); operator != "In" {
			return false, fmt.Errorf("the operator %s is not known here", strings.TrimSpace(operator))
		}
		if !slices.Contains(list(at(expression, "values")), labels[text(at(expression, "key"))]) {
			return false, nil
		}
	}
	return true, nil
}
