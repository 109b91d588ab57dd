package main

import (
	"strings"
	"testing"
)

const user = "system:serviceaccount:system:operator"

const chart = `
kind: ClusterRole
metadata: {name: operator}
rules:
- apiGroups: [apps]
  resources: [deployments]
  verbs: [patch, create, delete]
---
kind: ClusterRole
metadata: {name: users}
rules:
- apiGroups: [apps]
  resources: [daemonsets]
  verbs: [get]
---
kind: ClusterRoleBinding
metadata: {name: operator}
roleRef: {kind: ClusterRole, name: operator}
subjects: [{kind: ServiceAccount, namespace: system, name: operator}]
---
kind: Role
metadata: {name: lease, namespace: system}
rules:
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get]
---
kind: RoleBinding
metadata: {name: lease, namespace: system}
roleRef: {kind: Role, name: lease}
subjects: [{kind: ServiceAccount, namespace: system, name: operator}]
`

func line(verb, resource string, code int, decision, message string) string {
	group, name, _ := strings.Cut(resource, "/")
	return strings.NewReplacer("VERB", verb, "GROUP", group, "RESOURCE", name, "CODE", map[int]string{200: "200", 201: "201", 403: "403"}[code], "DECISION", decision, "MESSAGE", message).Replace(
		`{"verb":"VERB","user":{"username":"`+user+`"},"objectRef":{"apiGroup":"GROUP","resource":"RESOURCE"},"responseStatus":{"code":CODE,"message":"MESSAGE"},"annotations":{"authorization.k8s.io/decision":"DECISION"}}`) + "\n"
}

func check(t *testing.T, log string, wanted ...string) {
	t.Helper()
	granted, err := grantedTo(user, []byte(chart))
	if err != nil {
		t.Fatal(err)
	}
	seen := newAudit()
	if err := seen.read(strings.NewReader(log), user); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	err = report(granted, seen, &out)
	for _, words := range wanted {
		if !strings.Contains(out.String(), words) {
			t.Errorf("missing %q in:\n%s", words, out.String())
		}
	}
	if failed := err != nil; failed != (len(wanted) > 0) {
		t.Errorf("error %v with:\n%s", err, out.String())
	}
}

func all() string {
	return line("patch", "apps/deployments", 201, "allow", "") +
		line("delete", "apps/deployments", 200, "allow", "") +
		line("get", "coordination.k8s.io/leases", 200, "allow", "")
}

func TestAnApplyThatMakesTheObjectUsesBothVerbs(t *testing.T) {
	check(t, all())
}

func TestAnUnusedRightIsNamed(t *testing.T) {
	check(t, line("patch", "apps/deployments", 200, "allow", ""),
		"UNUSED: create deployments (apps)", "UNUSED: delete deployments (apps)", "UNUSED: get leases (coordination.k8s.io)")
}

func TestAForbiddenRequestIsNamed(t *testing.T) {
	check(t, all()+line("list", "/secrets", 403, "forbid", ""), "FORBIDDEN, 1 times: list secrets (core)")
	// The second check of an apply, after the first was allowed.
	check(t, all()+line("patch", "apps/daemonsets", 403, "allow", `User \"x\" cannot create resource`), "FORBIDDEN, 1 times: patch daemonsets (apps)")
}

// A release that is uninstalled loses its rights before its pod ends.
func TestWhatIsForbiddenWhileARoleIsAwayDoesNotCount(t *testing.T) {
	at := func(second, line string) string {
		return strings.Replace(line, "{", `{"requestReceivedTimestamp":"2026-01-01T00:00:`+second+`.000000Z",`, 1)
	}
	role := func(verb, code string) string {
		return `{"verb":"` + verb + `","user":{"username":"helm"},"objectRef":{"apiGroup":"rbac.authorization.k8s.io","resource":"clusterroles","name":"operator"},"responseStatus":{"code":` + code + "}}\n"
	}
	forbidden := line("get", "/secrets", 403, "forbid", "")
	away := at("02", role("delete", "200")) + at("04", role("create", "201"))
	check(t, all()+at("03", forbidden)+away)
	check(t, all()+at("01", forbidden)+away, "FORBIDDEN, 1 times: get secrets (core)")
	check(t, all()+at("05", forbidden)+at("03", forbidden)+away, "FORBIDDEN, 1 times: get secrets (core)")
	// The roles of others do not matter.
	check(t, all()+at("03", forbidden)+strings.ReplaceAll(away, `"operator"`, `"users"`), "FORBIDDEN, 1 times: get secrets (core)")
}

func TestARefusalByAdmissionIsNoQuestionOfRights(t *testing.T) {
	check(t, all()+line("patch", "apps/deployments", 403, "allow", "exceeded quota"))
}

func TestRequestsOfOthersDoNotCount(t *testing.T) {
	other := strings.ReplaceAll(all(), user, "system:admin")
	granted, _ := grantedTo(user, []byte(chart))
	seen := newAudit()
	if err := seen.read(strings.NewReader(other), user); err != nil {
		t.Fatal(err)
	}
	if err := report(granted, seen, &strings.Builder{}); err == nil || !strings.Contains(err.Error(), "no request") {
		t.Errorf("an empty log passes: %v", err)
	}
}

func TestAWildcardIsRefused(t *testing.T) {
	if _, err := grantedTo(user, []byte(strings.ReplaceAll(chart, "[deployments]", `["*"]`))); err == nil {
		t.Error("accepted")
	}
}
