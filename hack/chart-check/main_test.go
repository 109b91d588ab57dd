package main

import (
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const source = `
pub struct Metrics {
    pub waiting: Gauge,
    errors: Family<ErrorLabels, Counter>,
    seconds: Family<KindLabels, Histogram>,
}
registry.register("waiting", "Waiting", metrics.waiting.clone());
registry.register(
    "errors",
    "Errors",
    errors.clone(),
);
registry.register("seconds", "Seconds", seconds.clone());
registry.register("build", "Build", Info::new(vec![]));
let metric = encoder.encode_descriptor(
    "depth",
    "Depth",
    None,
    MetricType::Gauge,
)?;
`

func known(t *testing.T) map[string]bool {
	t.Helper()
	series, err := seriesOf(source, "x_")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, name := range series {
		names[name] = true
	}
	return names
}

func TestSeriesCarryTheSuffixOfTheirType(t *testing.T) {
	names := known(t)
	for _, name := range []string{"x_waiting", "x_errors_total", "x_seconds_bucket", "x_seconds_sum", "x_seconds_count", "x_build_info", "x_depth"} {
		if !names[name] {
			t.Errorf("%s is missing in %v", name, names)
		}
	}
	if len(names) != 7 {
		t.Errorf("%v", names)
	}
}

func TestExpressionsMustBeReadableAndAskForKnownMetrics(t *testing.T) {
	for expression, words := range map[string]string{
		`sum(rate(x_errors_total{kind=~"$kind"}[$__rate_interval]))`: "",
		`sum(rate(x_errors[5m]))`:                                    "no source registers the metric x_errors",
		`x_waiting > x_nothing`:                                      "x_nothing",
		`sum(x_waiting`:                                              "unclosed",
		`1 + 1`:                                                      "asks for no metric",
	} {
		err := checkExpression("here", expression, known(t))
		if (err == nil) != (words == "") || err != nil && !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, wanted %q", expression, err, words)
		}
	}
}

func TestSelectorsMustSelectWhatTheyAreMeantFor(t *testing.T) {
	pods := []pod{
		{origin: "case", part: "serve", labels: map[string]any{"component": "serve"}, ports: []port{{"http", 8080}, {"management", 8081}}},
		{origin: "case", part: "fetch", labels: map[string]any{"component": "fetch"}},
	}
	for name, words := range map[string]string{
		"{kind: NetworkPolicy, metadata: {name: chandler-serve}, spec: {podSelector: {matchLabels: {component: serve}}, ingress: [{ports: [{port: 8080}]}]}}": "",
		"{kind: NetworkPolicy, metadata: {name: chandler-serve}, spec: {podSelector: {matchLabels: {component: serve}}, ingress: [{ports: [{port: 9090}]}]}}": "names the port 9090",
		"{kind: NetworkPolicy, metadata: {name: chandler-serve}, spec: {podSelector: {}}}":                                                                    "selects the pods of fetch (case): true",
		"{kind: PodMonitor, metadata: {name: chandler-models}, spec: {selector: {matchLabels: {component: server}}}}":                                         "selects the pods of serve (case): false",
		"{kind: NetworkPolicy, metadata: {name: other}, spec: {podSelector: {}}}":                                                                             "does not know",
	} {
		var parsed object
		if err := yaml.Unmarshal([]byte(name), &parsed); err != nil {
			t.Fatal(err)
		}
		err := checkSelectors(parsed, pods)
		if (err == nil) != (words == "") || err != nil && !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, wanted %q", name, err, words)
		}
	}
}
