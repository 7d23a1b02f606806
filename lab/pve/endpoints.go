package pve

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// endpoints are the paths of the API that the lab simulates; made when the
// commands are.
var endpoints []endpoint

func apiEndpoints() []endpoint {
	vm := "nodes/{node}/qemu/{vmid}"
	// do makes an endpoint of a command of qm.
	do := func(work func(*run, params) error) func(*run, params) (any, error) {
		return func(r *run, p params) (any, error) {
			delete(p, "node")
			return nil, work(r, p)
		}
	}
	byName := map[string]command{}
	for _, c := range qmCommands {
		byName[c.name] = c
	}
	list := []endpoint{
		{method: "get", pattern: "version", run: (*run).apiVersion},
		{method: "get", pattern: "cluster/nextid", opts: map[string]setting{"vmid": anyText}, run: (*run).apiNextID},
		{method: "get", pattern: "cluster/resources", opts: map[string]setting{"type": oneOf("vm storage node sdn")}, run: (*run).apiResources},
		{method: "get", pattern: "cluster/status", run: (*run).apiClusterStatus},
		{method: "get", pattern: "nodes", run: (*run).apiNodes},
		{method: "get", pattern: "nodes/{node}/status", run: (*run).apiNodeStatus},
		{method: "get", pattern: "nodes/{node}/qemu", opts: map[string]setting{"full": flag}, run: (*run).apiGuests},
		{method: "get", pattern: vm + "/status/current", run: (*run).apiCurrent},
		{method: "get", pattern: vm + "/config", opts: map[string]setting{"current": flag, "snapshot": anyText}, run: (*run).apiConfig},
		{method: "get", pattern: vm + "/pending", run: (*run).apiPending},
		{method: "get", pattern: vm + "/snapshot", run: (*run).apiSnapshots},
		{method: "get", pattern: vm + "/agent/file-read", opts: map[string]setting{"file": anyText}, run: (*run).apiFileRead},
		{method: "create", pattern: vm + "/agent/file-write", opts: map[string]setting{"file": anyText, "content": anyText, "encode": flag}, run: (*run).apiFileWrite},
		{method: "get", pattern: "storage", run: (*run).apiStorages},
		{method: "get", pattern: "storage/{storage}", run: (*run).apiStorage},
		{method: "get", pattern: "nodes/{node}/storage", run: (*run).apiNodeStorages},
		{method: "get", pattern: "nodes/{node}/storage/{storage}/status", run: (*run).apiStorageStatus},
		{method: "get", pattern: "nodes/{node}/storage/{storage}/content", opts: map[string]setting{"content": anyText, "vmid": anyText}, run: (*run).apiContent},
		{method: "get", pattern: "nodes/{node}/network", opts: map[string]setting{"type": anyText}, run: (*run).apiNetworks},
		{method: "get", pattern: "nodes/{node}/network/{iface}", run: (*run).apiNetwork},
		{method: "get", pattern: "nodes/{node}/tasks", opts: map[string]setting{"limit": natural, "vmid": anyText, "source": anyText}, run: (*run).apiTasks},
		{method: "get", pattern: "nodes/{node}/tasks/{upid}/status", run: (*run).apiTaskStatus},
		{method: "get", pattern: "nodes/{node}/tasks/{upid}/log", opts: map[string]setting{"limit": natural, "start": natural}, run: (*run).apiTaskLog},
		{method: "get", pattern: "cluster/ha/status/current", run: (*run).apiHAStatus},
		{method: "create", pattern: "nodes/{node}/qemu", config: true, opts: withKeys(byName["create"].opts, map[string]setting{"vmid": anyText}), run: do((*run).create)},
		{method: "delete", pattern: vm, opts: byName["destroy"].opts, run: do((*run).destroy)},
		{method: "set", pattern: vm + "/config", config: true, opts: byName["set"].opts, run: do((*run).set)},
		{method: "create", pattern: vm + "/config", config: true, opts: byName["set"].opts, run: do((*run).setTask)},
		{method: "set", pattern: vm + "/resize", opts: map[string]setting{"disk": anyText, "size": anyText, "digest": anyText, "skiplock": flag}, run: do((*run).resizeTask)},
		{method: "create", pattern: vm + "/clone", opts: byName["clone"].withTarget(), run: do((*run).clone)},
	}
	for _, verb := range []string{"start", "stop", "shutdown", "reboot", "reset", "suspend", "resume"} {
		list = append(list, endpoint{method: "create", pattern: vm + "/status/" + verb, opts: byName[verb].opts, run: do(byName[verb].run)})
	}
	return list
}

func (c command) withTarget() map[string]setting {
	return withKeys(c.opts, map[string]setting{"newid": anyText})
}

// setTask is qm set as a task, as POST does it.
func (r *run) setTask(p params) error {
	if _, err := r.load(p["vmid"]); err != nil {
		return err
	}
	return r.task("qmconfig", p["vmid"], func(t *run) error { return t.set(p) })
}

func (r *run) apiVersion(params) (any, error) {
	release := strings.Join(strings.Split(r.cfg.PVEVersion, ".")[:2], ".")
	return map[string]any{"release": release, "repoid": repoID, "version": r.cfg.PVEVersion}, nil
}

func (r *run) apiNextID(p params) (any, error) {
	if id := p["vmid"]; id != "" {
		if g, taken := r.whereIs(id); taken {
			what := map[string]string{"qemu": "VM", "lxc": "CT"}[g.Type]
			return nil, badParam(2, "vmid", "%s %s already exists", what, id)
		}
		return id, nil
	}
	for i := 100; ; i++ {
		if _, taken := r.whereIs(strconv.Itoa(i)); !taken {
			return strconv.Itoa(i), nil
		}
	}
}

func (r *run) apiGuests(p params) (any, error) {
	ids, err := r.guests()
	if err != nil {
		return nil, err
	}
	list := []any{}
	for _, id := range ids {
		if c, err := r.load(id); err == nil {
			list = append(list, r.vmStatus(id, c, p.on("full")))
		}
	}
	return list, nil
}

func (r *run) apiCurrent(p params) (any, error) {
	c, err := r.load(p["vmid"])
	if err != nil {
		return nil, err
	}
	s := r.vmStatus(p["vmid"], c, true)
	s["ha"] = map[string]any{"managed": 0}
	if agentEnabled(c.main) {
		s["agent"] = 1
	}
	return s, nil
}

func (r *run) apiConfig(p params) (any, error) {
	c, err := r.load(p["vmid"])
	if err != nil {
		return nil, err
	}
	m := map[string]any{"digest": c.digest}
	for k, v := range c.shown(p.on("current")) {
		m[k] = v
	}
	return m, nil
}

func (r *run) apiPending(p params) (any, error) {
	c, err := r.load(p["vmid"])
	if err != nil {
		return nil, err
	}
	all := maps.Clone(c.main)
	maps.Copy(all, c.pending)
	all["digest"] = c.digest
	list := []any{}
	for _, k := range slices.Sorted(maps.Keys(all)) {
		e := map[string]any{"key": k}
		if v, ok := c.main[k]; ok || k == "digest" {
			if e["value"] = v; k == "digest" {
				e["value"] = c.digest
			}
		}
		if v, ok := c.pending[k]; ok {
			e["pending"] = v
		}
		if slices.Contains(c.deleting, k) {
			e["delete"] = 1
		}
		list = append(list, e)
	}
	return list, nil
}

func (r *run) apiSnapshots(p params) (any, error) {
	c, err := r.load(p["vmid"])
	if err != nil {
		return nil, err
	}
	list := []any{}
	for _, name := range slices.Sorted(maps.Keys(c.snapshots)) {
		s := c.snapshots[name]
		e := map[string]any{"name": name, "description": s["description"], "snaptime": intOr(s["snaptime"], 0)}
		if s["parent"] != "" {
			e["parent"] = s["parent"]
		}
		list = append(list, e)
	}
	running := 0
	if r.running(p["vmid"]) != 0 {
		running = 1
	}
	current := map[string]any{"name": "current", "description": "You are here!", "digest": c.digest, "running": running}
	if c.main["parent"] != "" {
		current["parent"] = c.main["parent"]
	}
	return append(list, current), nil
}

// apiTasks lists the newest tasks first, finished ones from the index.
func (r *run) apiTasks(p params) (any, error) {
	data, err := os.ReadFile(r.path("var/log/pve/tasks/index"))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	slices.Reverse(lines)
	list := []any{}
	for _, line := range lines {
		f := strings.SplitN(line, " ", 3)
		if len(f) < 3 || p["vmid"] != "" && strings.Split(f[0], ":")[6] != p["vmid"] {
			continue
		}
		t := taskFields(f[0])
		end, _ := strconv.ParseInt(f[1], 16, 64)
		t["endtime"], t["status"] = end, f[2]
		list = append(list, t)
		if int64(len(list)) == intOr(p["limit"], 50) {
			break
		}
	}
	return list, nil
}

// taskFields takes a UPID apart.
func taskFields(upid string) map[string]any {
	f := strings.Split(upid, ":")
	hex := func(s string) int64 { n, _ := strconv.ParseInt(s, 16, 64); return n }
	return map[string]any{"upid": upid, "node": f[1], "pid": hex(f[2]), "pstart": hex(f[3]), "starttime": hex(f[4]),
		"type": f[5], "id": f[6], "user": f[7]}
}

func (r *run) checkUPID(upid string) error {
	if f := strings.Split(upid, ":"); len(f) != 9 || f[0] != "UPID" || f[4] == "" {
		return badParam(2, "upid", "unable to parse worker upid")
	}
	if _, err := os.Stat(r.taskLog(upid)); err != nil {
		return badParam(2, "upid", "no such task")
	}
	return nil
}

func (r *run) apiTaskStatus(p params) (any, error) {
	upid := p["upid"]
	if err := r.checkUPID(upid); err != nil {
		return nil, err
	}
	t := taskFields(upid)
	t["status"] = "running"
	data, err := os.ReadFile(r.taskLog(upid))
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	last, ended := strings.CutPrefix(lines[len(lines)-1], "TASK ")
	pid, start := activeTask{upid: upid}.pid()
	switch {
	case ended:
		t["status"], t["exitstatus"] = "stopped", strings.TrimPrefix(last, "ERROR: ")
	case r.processStart(pid) != start || start == 0:
		t["status"], t["exitstatus"] = "stopped", "unexpected status"
	}
	return t, nil
}

func (r *run) apiTaskLog(p params) (any, error) {
	if err := r.checkUPID(p["upid"]); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(r.taskLog(p["upid"]))
	if err != nil {
		return nil, err
	}
	list := []any{}
	for i, line := range strings.Split(strings.TrimSuffix(string(data), "\n"), "\n") {
		list = append(list, map[string]any{"n": i + 1, "t": line})
	}
	return list, nil
}

func (r *run) apiStorages(params) (any, error) {
	list, err := r.storages()
	if err != nil {
		return nil, err
	}
	out := []any{}
	for _, s := range list {
		out = append(out, r.storageConfig(s))
	}
	return out, nil
}

func (r *run) apiStorage(p params) (any, error) {
	s, err := r.storage(p["storage"])
	if err != nil {
		return nil, err
	}
	return r.storageConfig(s), nil
}

func (r *run) storageConfig(s *storage) map[string]any {
	m := map[string]any{"storage": s.id, "type": s.typ, "digest": fileDigest(filepath.Join(r.pmxcfs(), "storage.cfg"))}
	for k, v := range s.values {
		m[k] = v
	}
	if s.disabled() {
		m["disable"] = 1
	}
	return m
}

func (r *run) apiStorageStatus(p params) (any, error) {
	s, err := r.storage(p["storage"])
	if err != nil {
		return nil, err
	}
	m := r.storageFigures(s)
	delete(m, "storage")
	delete(m, "used_fraction")
	return m, nil
}

func (r *run) apiNodeStorages(params) (any, error) {
	list, err := r.storages()
	if err != nil {
		return nil, err
	}
	out := []any{}
	for _, s := range list {
		if s.onNode(r.cfg.NodeName) {
			out = append(out, r.storageFigures(s))
		}
	}
	return out, nil
}

func (r *run) storageFigures(s *storage) map[string]any {
	st := r.statusOf(s)
	bit := map[bool]int{true: 1}
	m := map[string]any{"storage": s.id, "type": s.typ, "content": s.get("content"), "shared": 0, "active": bit[st.active],
		"enabled": bit[st.enabled], "total": st.total, "used": st.used, "avail": st.free()}
	if st.total > 0 {
		m["used_fraction"] = float64(st.used) / float64(st.total)
	}
	return m
}

func (r *run) apiContent(p params) (any, error) {
	s, err := r.usable(p["storage"])
	if err != nil {
		return nil, err
	}
	list, err := r.contents(s)
	if err != nil {
		return nil, err
	}
	out := []any{}
	for _, c := range list {
		if p["content"] != "" && c.content != p["content"] || p["vmid"] != "" && c.vmid != p["vmid"] {
			continue
		}
		m := map[string]any{"volid": c.id, "content": c.content, "format": c.format, "size": c.size, "ctime": c.ctime}
		if c.vmid != "" {
			m["vmid"], m["parent"], m["used"] = intOr(c.vmid, 0), nil, c.used
		}
		out = append(out, m)
	}
	return out, nil
}
