// Program rights compares what the operator may do, by the rendered chart, with what it did, by the API server's audit log.
// It names every right that nothing used and every request that was forbidden, and fails if there is any.
// Requests that were forbidden while a role or its binding was away do not count: a release that is uninstalled loses them before its pod.
//
// A right is a group, a resource with its subresource, and a verb. Where it holds (namespace, names) is not compared.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

const usage = "usage: rights --chart RENDERED.yaml --user system:serviceaccount:NAMESPACE:NAME AUDIT.log..."

// unseen are rights that no request shows, each with the reason why it is needed all the same.
var unseen = map[right]string{
	{"chandler.dev", "modeldeployments/finalizers", "update"}: "asked for by the admission plugin OwnerReferencesPermissionEnforcement, on OpenShift for one",
	{"chandler.dev", "modelcaches/finalizers", "update"}:      "the same",
}

func main() {
	chart := flag.String("chart", "", "the rendered chart")
	user := flag.String("user", "", "whose requests are looked at")
	flag.Parse()
	if err := run(*chart, *user, flag.Args(), os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "rights: %v\n", err)
		os.Exit(1)
	}
}

func run(chart, user string, logs []string, out io.Writer) error {
	if chart == "" || user == "" || len(logs) == 0 {
		return errors.New(usage)
	}
	text, err := os.ReadFile(chart)
	if err != nil {
		return err
	}
	granted, err := grantedTo(user, text)
	if err != nil {
		return fmt.Errorf("%s: %w", chart, err)
	}
	seen := newAudit()
	for _, log := range logs {
		if err := seen.readFile(log, user); err != nil {
			return fmt.Errorf("%s: %w", log, err)
		}
	}
	return report(granted, seen, out)
}

func report(granted grants, seen audit, out io.Writer) error {
	if seen.requests == 0 {
		return errors.New("the logs hold no request of this user; was the cluster started with --audit, and did the stories run?")
	}
	unused := 0
	for _, right := range slices.SortedFunc(maps.Keys(granted.rights), right.compare) {
		if seen.used[right] {
			continue
		}
		if why, ok := unseen[right]; ok {
			fmt.Fprintf(out, "no request shows: %s (%s)\n", right, why)
			continue
		}
		unused++
		fmt.Fprintf(out, "UNUSED: %s\n", right)
	}
	forbidden := 0
	for _, request := range slices.Sorted(maps.Keys(seen.forbidden)) {
		times := slices.DeleteFunc(slices.Clone(seen.forbidden[request]), func(at time.Time) bool { return seen.away(granted.from, at) })
		if len(times) == 0 {
			fmt.Fprintf(out, "forbidden only while the release was away, %d times: %s\n", len(seen.forbidden[request]), request)
			continue
		}
		forbidden++
		fmt.Fprintf(out, "FORBIDDEN, %d times: %s\n", len(times), request)
	}
	fmt.Fprintf(out, "%d rights, %d unused; %d requests, %d kinds of them forbidden\n", len(granted.rights), unused, seen.requests, forbidden)
	if unused > 0 || forbidden > 0 {
		return errors.New("the operator's rights are not those that it needs")
	}
	return nil
}

// grants are the rights of a ServiceAccount and the roles and bindings that they come from.
type grants struct {
	rights map[right]bool
	from   map[source]bool
}

// source is a role or a binding; resource is its plural name in lower case.
type source struct {
	resource, namespace, name string
}

type right struct {
	group, resource, verb string
}

func (r right) String() string {
	group := r.group
	if group == "" {
		group = "core"
	}
	return r.verb + " " + r.resource + " (" + group + ")"
}

func (r right) compare(other right) int {
	return strings.Compare(r.group+" "+r.resource+" "+r.verb, other.group+" "+other.resource+" "+other.verb)
}

// grantedTo collects the rules of the roles that are bound to a ServiceAccount.
func grantedTo(user string, chart []byte) (grants, error) {
	type document struct {
		Kind     string
		Metadata struct{ Namespace, Name string }
		Rules    []struct {
			APIGroups []string `json:"apiGroups"`
			Resources []string
			Verbs     []string
		}
		RoleRef  struct{ Kind, Name string } `json:"roleRef"`
		Subjects []struct{ Kind, Namespace, Name string }
	}
	var documents []document
	for _, part := range bytes.Split(chart, []byte("\n---\n")) {
		var found document
		if err := yaml.Unmarshal(part, &found); err != nil {
			return grants{}, err
		}
		documents = append(documents, found)
	}
	// A role's kind, namespace and name.
	bound := map[[3]string]bool{}
	granted := grants{rights: map[right]bool{}, from: map[source]bool{}}
	for _, binding := range documents {
		for _, subject := range binding.Subjects {
			if subject.Kind == "ServiceAccount" && user == "system:serviceaccount:"+subject.Namespace+":"+subject.Name {
				namespace := ""
				if binding.RoleRef.Kind == "Role" {
					namespace = binding.Metadata.Namespace
				}
				bound[[3]string{binding.RoleRef.Kind, namespace, binding.RoleRef.Name}] = true
				granted.from[source{strings.ToLower(binding.Kind) + "s", binding.Metadata.Namespace, binding.Metadata.Name}] = true
			}
		}
	}
	for _, role := range documents {
		if !bound[[3]string{role.Kind, role.Metadata.Namespace, role.Metadata.Name}] {
			continue
		}
		granted.from[source{strings.ToLower(role.Kind) + "s", role.Metadata.Namespace, role.Metadata.Name}] = true
		for _, rule := range role.Rules {
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					for _, verb := range rule.Verbs {
						if group == "*" || resource == "*" || verb == "*" {
							return grants{}, fmt.Errorf("%s %s has a wildcard", role.Kind, role.Metadata.Name)
						}
						granted.rights[right{group, resource, verb}] = true
					}
				}
			}
		}
	}
	if len(granted.rights) == 0 {
		return grants{}, fmt.Errorf("no role is bound to %s", user)
	}
	return granted, nil
}

type audit struct {
	requests  int
	used      map[right]bool
	forbidden map[string][]time.Time
	// When roles and bindings, of anybody, came and went.
	changes map[source][]change
}

type change struct {
	at   time.Time
	gone bool
}

func newAudit() audit {
	return audit{used: map[right]bool{}, forbidden: map[string][]time.Time{}, changes: map[source][]change{}}
}

// away says whether one of the sources was deleted, and not made again, at that time.
func (a *audit) away(sources map[source]bool, at time.Time) bool {
	for from := range sources {
		var last change
		for _, change := range a.changes[from] {
			if !change.at.After(at) && !change.at.Before(last.at) {
				last = change
			}
		}
		if last.gone {
			return true
		}
	}
	return false
}

func (a *audit) readFile(path, user string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return a.read(file, user)
}

// Lines of the log are as long as the objects in them.
const longestLine = 16 << 20

func (a *audit) read(log io.Reader, user string) error {
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, longestLine)
	for lines.Scan() {
		// Most lines are somebody else's, and parsing is what takes the time.
		if !bytes.Contains(lines.Bytes(), []byte(user)) && !bytes.Contains(lines.Bytes(), []byte(rbac)) {
			continue
		}
		var event event
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			// The server may be writing the last line.
			if !lines.Scan() {
				break
			}
			return err
		}
		if event.User.Username == user && event.ImpersonatedUser == nil {
			a.add(event)
		}
		if event.ObjectRef != nil && event.ObjectRef.APIGroup == rbac {
			a.follow(event)
		}
	}
	return lines.Err()
}

const rbac = "rbac.authorization.k8s.io"

type event struct {
	Verb             string
	ReceivedAt       time.Time `json:"requestReceivedTimestamp"`
	RequestURI       string    `json:"requestURI"`
	User             struct{ Username string }
	ImpersonatedUser *struct{} `json:"impersonatedUser"`
	ObjectRef        *struct {
		APIGroup    string `json:"apiGroup"`
		Resource    string
		Subresource string
		Namespace   string
		Name        string
	} `json:"objectRef"`
	ResponseStatus struct {
		Code    int
		Message string
	} `json:"responseStatus"`
	Annotations map[string]string
}

// follow notes that a role or a binding came or went.
func (a *audit) follow(event event) {
	of := source{event.ObjectRef.Resource, event.ObjectRef.Namespace, event.ObjectRef.Name}
	switch {
	case event.Verb == "delete" && event.ResponseStatus.Code == 200:
		a.changes[of] = append(a.changes[of], change{event.ReceivedAt, true})
	case event.ResponseStatus.Code == 201:
		a.changes[of] = append(a.changes[of], change{event.ReceivedAt, false})
	}
}

func (a *audit) add(event event) {
	a.requests++
	if event.isForbidden() {
		// Messages name objects; the request without them is enough to find the missing right.
		a.forbidden[event.what()] = append(a.forbidden[event.what()], event.ReceivedAt)
		return
	}
	if event.ObjectRef == nil {
		return
	}
	done := event.right()
	a.used[done] = true
	// A server-side apply that makes the object is asked for both verbs, and logged under one.
	if event.Verb == "patch" && event.ResponseStatus.Code == 201 {
		done.verb = "create"
		a.used[done] = true
	}
}

func (e event) right() right {
	resource := e.ObjectRef.Resource
	if e.ObjectRef.Subresource != "" {
		resource += "/" + e.ObjectRef.Subresource
	}
	return right{e.ObjectRef.APIGroup, resource, e.Verb}
}

func (e event) what() string {
	if e.ObjectRef == nil {
		return e.Verb + " " + e.RequestURI
	}
	return e.right().String()
}

// isForbidden is false where admission refused, by a quota or in a namespace that is going: that is no question of rights.
// The second check of a server-side apply is only told in the message.
func (e event) isForbidden() bool {
	return e.Annotations["authorization.k8s.io/decision"] == "forbid" ||
		e.ResponseStatus.Code == 403 && strings.Contains(e.ResponseStatus.Message, "\" cannot ")
}
