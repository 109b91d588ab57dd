package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// Where metrics are registered, and the prefix that the registry gives them.
var registries = map[string]string{
	"runtime-image/src/metrics.rs": "",
	"operator/src/telemetry.rs":    "chandler_operator_",
}

var (
	field      = regexp.MustCompile(`(?m)^\s*(?:pub )?(\w+): (?:Family<\w+, )?(Counter|Gauge|Histogram)\b`)
	registered = regexp.MustCompile(`\.register\(\s*"([\w:]+)",\s*"[^"]*",\s*(?:metrics\.)?(\w+)\.clone\(\)|\.register\(\s*"([\w:]+)",\s*"[^"]*",\s*Info::new`)
	// What a collector gives is named where it is written.
	collected = regexp.MustCompile(`\.encode_descriptor\(\s*"([\w:]+)",\s*"[^"]*",\s*None,\s*MetricType::(\w+)`)
)

// What a metric is called on the wire, by its type.
var suffixes = map[string][]string{
	"Counter":   {"_total"},
	"Gauge":     {""},
	"Histogram": {"_bucket", "_sum", "_count"},
	"Info":      {"_info"},
}

// readMetrics gives the names of all series that operator and runtime offer.
func readMetrics(checkout string) (map[string]bool, error) {
	series := map[string]bool{}
	for path, prefix := range registries {
		source, err := os.ReadFile(filepath.Join(checkout, path))
		if err != nil {
			return nil, err
		}
		found, err := seriesOf(string(source), prefix)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		for _, name := range found {
			series[name] = true
		}
	}
	return series, nil
}

func seriesOf(source, prefix string) ([]string, error) {
	types := map[string]string{}
	for _, match := range field.FindAllStringSubmatch(source, -1) {
		types[match[1]] = match[2]
	}
	var series []string
	for _, match := range registered.FindAllStringSubmatch(source, -1) {
		name, kind := match[1], types[match[2]]
		if match[3] != "" {
			name, kind = match[3], "Info"
		}
		if kind == "" {
			return nil, fmt.Errorf("metric %s is registered from %s, which no struct here declares", name, match[2])
		}
		for _, suffix := range suffixes[kind] {
			series = append(series, prefix+name+suffix)
		}
	}
	for _, match := range collected.FindAllStringSubmatch(source, -1) {
		for _, suffix := range suffixes[match[2]] {
			series = append(series, prefix+match[1]+suffix)
		}
	}
	if len(series) == 0 {
		return nil, errors.New("no metric is registered here")
	}
	return series, nil
}

// checkMetrics looks at the alerts and dashboards of an object.
func checkMetrics(object object, known map[string]bool) error {
	var faults []error
	switch object.kind() {
	case "PrometheusRule":
		for _, group := range list(at(object, "spec", "groups")) {
			for _, rule := range list(at(group, "rules")) {
				where := object.title() + ", alert " + text(at(rule, "alert"))
				faults = append(faults, checkExpression(where, text(at(rule, "expr")), known))
			}
		}
	case "ConfigMap":
		data, _ := at(object, "data").(map[string]any)
		for name, content := range data {
			if strings.HasSuffix(name, ".json") {
				faults = append(faults, checkDashboard(object.title()+", "+name, text(content), known))
			}
		}
	}
	return errors.Join(faults...)
}

func checkDashboard(where, content string, known map[string]bool) error {
	var dashboard struct {
		Title      string
		Templating struct {
			List []struct{ Name, Type, Query string }
		}
		Panels []struct {
			ID      int
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(content), &dashboard); err != nil {
		return fmt.Errorf("%s is no dashboard: %w", where, err)
	}
	if dashboard.Title == "" || len(dashboard.Panels) == 0 {
		return fmt.Errorf("%s has no title or no panel", where)
	}
	var faults []error
	ids := map[int]bool{}
	for _, panel := range dashboard.Panels {
		where := fmt.Sprintf("%s, panel %q", where, panel.Title)
		if ids[panel.ID] || panel.Title == "" || len(panel.Targets) == 0 {
			faults = append(faults, fmt.Errorf("%s: the id is taken, or there is no title or no target", where))
		}
		ids[panel.ID] = true
		for _, target := range panel.Targets {
			faults = append(faults, checkExpression(where, target.Expr, known))
		}
	}
	for _, variable := range dashboard.Templating.List {
		if variable.Type != "query" {
			continue
		}
		where := fmt.Sprintf("%s, variable %q", where, variable.Name)
		inner, ok := strings.CutPrefix(variable.Query, "label_values(")
		end := strings.LastIndex(inner, ",")
		if !ok || end < 0 {
			faults = append(faults, fmt.Errorf("%s is not label_values(SELECTOR, LABEL): %s", where, variable.Query))
			continue
		}
		faults = append(faults, checkExpression(where, inner[:end], known))
	}
	return errors.Join(faults...)
}

// Grafana puts a duration here; its other variables stand in quotes, where Prometheus' language takes any text.
var interval = strings.NewReplacer("$__rate_interval", "5m", "$__interval", "5m")

func checkExpression(where, expression string, known map[string]bool) error {
	parsed, err := parser.ParseExpr(interval.Replace(expression))
	if err != nil {
		return fmt.Errorf("%s: %s: %w", where, expression, err)
	}
	selectors := parser.ExtractSelectors(parsed)
	if len(selectors) == 0 {
		return fmt.Errorf("%s: %s asks for no metric", where, expression)
	}
	var faults []error
	for _, selector := range selectors {
		for _, matcher := range selector {
			if matcher.Name == labels.MetricName && !known[matcher.Value] {
				faults = append(faults, fmt.Errorf("%s: no source registers the metric %s", where, matcher.Value))
			}
		}
	}
	return errors.Join(faults...)
}
