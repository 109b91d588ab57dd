// Package argocd holds Argo CD's health checks of our kinds and runs them as Argo CD does.
//
// The scripts in resource_customizations lie as Argo CD's own repository has them, so that they can go there unchanged.
package argocd

import (
	"context"
	"embed"
	"fmt"
	"time"

	lua "github.com/yuin/gopher-lua"
)

//go:embed resource_customizations
var customizations embed.FS

// Patience is how long Argo CD lets a script run.
const patience = time.Second

// Health is what Argo CD shows of an object.
type Health struct {
	Status  string `json:"status"`
	Message string `json:"message,omitempty"`
}

// Statuses are those that Argo CD takes from a script; anything else it shows as Unknown.
var statuses = map[string]bool{"Healthy": true, "Progressing": true, "Degraded": true, "Suspended": true, "Missing": true, "Unknown": true}

// Script is the health check of a kind of ours, empty where there is none: Argo CD then counts an object as healthy once it is there.
func Script(kind string) string {
	text, err := customizations.ReadFile("resource_customizations/chandler.dev/" + kind + "/health.lua")
	if err != nil {
		return ""
	}
	return string(text)
}

// Run gives an object to a script and takes the script's answer.
func Run(script string, object map[string]any) (Health, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	if err := open(state); err != nil {
		return Health{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	state.SetContext(ctx)
	state.SetGlobal("obj", toLua(state, object))
	if err := state.DoString(script); err != nil {
		return Health{}, fmt.Errorf("the script failed: %w", err)
	}
	return answer(state.Get(-1))
}

// Open gives a script what it finds in Argo CD when it comes from argocd-cm: no strings, no mathematics, no files.
// Argo CD adds the time of day, which no health of ours depends on.
func open(state *lua.LState) error {
	for name, library := range map[string]lua.LGFunction{
		lua.LoadLibName: lua.OpenPackage,
		lua.BaseLibName: lua.OpenBase,
		lua.TabLibName:  lua.OpenTable,
	} {
		call := lua.P{Fn: state.NewFunction(library), NRet: 0, Protect: true}
		if err := state.CallByParam(call, lua.LString(name)); err != nil {
			return fmt.Errorf("cannot open the library %q: %w", name, err)
		}
	}
	return nil
}

// ToLua turns a value that came from JSON into Lua's; every number is a floating one there, and null is nothing.
func toLua(state *lua.LState, value any) lua.LValue {
	switch value := value.(type) {
	case bool:
		return lua.LBool(value)
	case string:
		return lua.LString(value)
	case float64:
		return lua.LNumber(value)
	case int64:
		return lua.LNumber(value)
	case []any:
		list := state.NewTable()
		for _, item := range value {
			list.Append(toLua(state, item))
		}
		return list
	case map[string]any:
		table := state.NewTable()
		for key, item := range value {
			table.RawSetString(key, toLua(state, item))
		}
		return table
	default:
		return lua.LNil
	}
}

func answer(value lua.LValue) (Health, error) {
	table, ok := value.(*lua.LTable)
	if !ok {
		return Health{}, fmt.Errorf("the script returned a %s instead of a table", value.Type())
	}
	health := Health{}
	if text, ok := table.RawGetString("status").(lua.LString); ok {
		health.Status = string(text)
	}
	if text, ok := table.RawGetString("message").(lua.LString); ok {
		health.Message = string(text)
	}
	if !statuses[health.Status] {
		return Health{}, fmt.Errorf("the script returned the status %q, which Argo CD does not know", health.Status)
	}
	return health, nil
}
