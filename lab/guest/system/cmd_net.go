package system

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/homeiac/homelab/lab/guest/shell"
)

// NetIface is an interface as the guest agent and ip(8) tell it.
type NetIface struct {
	Name      string
	MAC       string
	Addresses []string // CIDR
}

// Interfaces lists the guest's interfaces, lo first.
func (o *OS) Interfaces() []NetIface {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := []NetIface{{Name: "lo", MAC: "00:00:00:00:00:00", Addresses: []string{"127.0.0.1/8"}}}
	for _, i := range o.ifaces {
		n := NetIface{Name: i.name, MAC: i.mac}
		for _, a := range i.addrs {
			n.Addresses = append(n.Addresses, a.String())
		}
		out = append(out, n)
	}
	return out
}

func (o *OS) ip(_ context.Context, c *shell.Call) int {
	asJSON, oneline := false, false
	var args []string
	for _, a := range c.Argv[1:] {
		switch a {
		case "-j", "-json", "--json":
			asJSON = true
		case "-o", "-oneline", "--oneline":
			oneline = true
		case "-4", "-br", "-brief", "-p":
		default:
			if strings.HasPrefix(a, "-") {
				return c.Refuse("option " + a)
			}
			args = append(args, a)
		}
	}
	if len(args) == 0 {
		return c.Refuse("no object")
	}
	only := ""
	for i, a := range args {
		if a == "dev" && i+1 < len(args) {
			only = args[i+1]
		}
	}
	switch args[0] {
	case "a", "addr", "address", "l", "link":
		return o.ipAddr(c, only, asJSON, oneline)
	case "r", "route":
		return o.ipRoute(c, asJSON)
	}
	return c.Refuse("object " + args[0])
}

func (o *OS) ipAddr(c *shell.Call, only string, asJSON, oneline bool) int {
	type info struct {
		Family string `json:"family"`
		Local  string `json:"local"`
		Prefix int    `json:"prefixlen"`
		Scope  string `json:"scope"`
		Label  string `json:"label"`
	}
	type link struct {
		Index   int      `json:"ifindex"`
		Name    string   `json:"ifname"`
		Flags   []string `json:"flags"`
		MTU     int      `json:"mtu"`
		State   string   `json:"operstate"`
		Type    string   `json:"link_type"`
		Address string   `json:"address"`
		Info    []info   `json:"addr_info"`
	}
	links := []link{}
	for n, i := range o.Interfaces() {
		if only != "" && i.Name != only {
			continue
		}
		l := link{Index: n + 1, Name: i.Name, Flags: []string{"UP", "LOWER_UP"}, MTU: 1500, State: "UP", Type: "ether", Address: i.MAC, Info: []info{}}
		scope := "global"
		if i.Name == "lo" {
			l.State, l.Type, l.MTU, scope = "UNKNOWN", "loopback", 65536, "host"
		}
		for _, a := range i.Addresses {
			ip, bits, _ := strings.Cut(a, "/")
			p, _ := strconv.Atoi(bits)
			l.Info = append(l.Info, info{"inet", ip, p, scope, i.Name})
		}
		links = append(links, l)
	}
	if asJSON {
		b, err := json.Marshal(links)
		if err != nil {
			return c.Fail("%v", err)
		}
		c.Printf("%s\n", b)
		return 0
	}
	for _, l := range links {
		if oneline {
			for _, a := range l.Info {
				c.Printf("%d: %s    inet %s/%d scope %s %s\\       valid_lft forever preferred_lft forever\n", l.Index, l.Name, a.Local, a.Prefix, a.Scope, l.Name)
			}
			continue
		}
		c.Printf("%d: %s: <UP,LOWER_UP> mtu %d state %s\n    link/ether %s\n", l.Index, l.Name, l.MTU, l.State, l.Address)
		for _, a := range l.Info {
			c.Printf("    inet %s/%d scope %s %s\n", a.Local, a.Prefix, a.Scope, l.Name)
		}
	}
	return 0
}

func (o *OS) ipRoute(c *shell.Call, asJSON bool) int {
	ifs := o.Interfaces()
	type route struct {
		Dst     string `json:"dst"`
		Gateway string `json:"gateway,omitempty"`
		Dev     string `json:"dev"`
	}
	routes := []route{}
	for _, i := range ifs {
		if i.Name == "lo" || len(i.Addresses) == 0 {
			continue
		}
		if len(routes) == 0 {
			routes = append(routes, route{"default", "", i.Name})
		}
		for _, a := range i.Addresses {
			if _, n, err := net.ParseCIDR(a); err == nil {
				routes = append(routes, route{n.String(), "", i.Name})
			}
		}
	}
	if asJSON {
		b, err := json.Marshal(routes)
		if err != nil {
			return c.Fail("%v", err)
		}
		c.Printf("%s\n", b)
		return 0
	}
	for _, r := range routes {
		c.Printf("%s dev %s\n", r.Dst, r.Dev)
	}
	return 0
}

// ss lists which of the ports that matter are answered on the guest's address.
func (o *OS) ss(ctx context.Context, c *shell.Call) int {
	for _, a := range c.Argv[1:] {
		if strings.Trim(a, "-tlnpHu4") != "" {
			return c.Refuse("argument " + a)
		}
	}
	c.Printf("State  Recv-Q Send-Q Local Address:Port Peer Address:Port\n")
	for _, port := range []int{o.m.Settings.SSHPort, 2379, 2380, 6443} {
		dctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		conn, err := o.Dial(dctx, "127.0.0.1", port)
		cancel()
		if err == nil {
			conn.Close()
			c.Printf("LISTEN 0      4096   %s:%d      0.0.0.0:*\n", o.Address(), port)
		}
	}
	return 0
}

// HTTP gives a client whose connections leave from inside the guest.
func (o *OS) HTTP(cfg *tls.Config, timeout time.Duration) *http.Client {
	return &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			TLSClientConfig:   cfg,
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				host, port, err := net.SplitHostPort(addr)
				if err != nil {
					return nil, err
				}
				n, err := strconv.Atoi(port)
				if err != nil {
					return nil, err
				}
				return o.Dial(ctx, host, n)
			},
		},
	}
}

// curl fetches from lab addresses and file: URLs only.
func (o *OS) curl(ctx context.Context, c *shell.Call) int {
	out, fail, silent, showErr, insecure, head := "", false, false, false, false, false
	user, cacert, data, method, format := "", "", "", "", ""
	limit := time.Minute
	var headers, urls []string
	for i := 1; i < len(c.Argv); i++ {
		a := c.Argv[i]
		val := func() string {
			if i++; i < len(c.Argv) {
				return c.Argv[i]
			}
			return ""
		}
		switch a {
		case "-o", "--output":
			out = val()
		case "-u", "--user":
			user = val()
		case "--cacert":
			cacert = val()
		case "-H", "--header":
			headers = append(headers, val())
		case "-d", "--data":
			data = val()
		case "-X", "--request":
			method = val()
		case "-w", "--write-out":
			format = val()
		case "-m", "--max-time", "--connect-timeout":
			n, err := strconv.ParseFloat(val(), 64)
			if err != nil {
				return c.Fail("option %s: expected a proper numerical parameter", a)
			}
			limit = time.Duration(n * float64(time.Second))
		case "--retry", "--retry-delay":
			val()
		case "--fail":
			fail = true
		case "--silent":
			silent = true
		case "--show-error":
			showErr = true
		case "--insecure":
			insecure = true
		case "--location", "--head":
			head = head || a == "--head"
		default:
			if strings.HasPrefix(a, "-") && strings.Trim(a, "-fsSLkI") == "" && !strings.HasPrefix(a, "--") {
				fail = fail || strings.Contains(a, "f")
				silent = silent || strings.Contains(a, "s")
				showErr = showErr || strings.Contains(a, "S")
				insecure = insecure || strings.Contains(a, "k")
				head = head || strings.Contains(a, "I")
				continue
			}
			if strings.HasPrefix(a, "-") {
				// Joined with a value at the end: -sfLo FILE.
				if strings.HasSuffix(a, "o") && strings.Trim(a[:len(a)-1], "-fsSLk") == "" {
					fail = fail || strings.Contains(a, "f")
					silent = silent || strings.Contains(a, "s")
					showErr = showErr || strings.Contains(a, "S")
					insecure = insecure || strings.Contains(a, "k")
					out = val()
					continue
				}
				return c.Refuse("option " + a)
			}
			urls = append(urls, a)
		}
	}
	trouble := func(code int, format string, args ...any) int {
		if !silent || showErr {
			fmt.Fprintf(c.Stderr, "curl: (%d) %s\n", code, fmt.Sprintf(format, args...))
		}
		return code
	}
	if len(urls) != 1 {
		return trouble(2, "one URL, please")
	}
	u, err := url.Parse(urls[0])
	if err != nil {
		return trouble(3, "URL rejected: Malformed input to a URL function")
	}
	w := c.Stdout
	var file io.Closer
	defer func() {
		if file != nil {
			file.Close()
		}
	}()
	open := func() error {
		if out == "" {
			return nil
		}
		f, err := c.Open(out, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
		if err == nil {
			w, file = f, f
		}
		return err
	}
	if u.Scheme == "file" {
		b, err := c.FS().ReadFile(u.Path)
		if err != nil {
			return trouble(37, "Couldn't open file %s", u.Path)
		}
		if err := open(); err != nil {
			return trouble(23, "Failure writing output to destination")
		}
		if _, err := w.Write(b); err != nil {
			return trouble(23, "Failure writing output to destination")
		}
		return 0
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return trouble(1, "Protocol \"%s\" not supported", u.Scheme)
	}
	cfg := &tls.Config{InsecureSkipVerify: insecure} //nolint:gosec // it is what -k asks for
	if cacert != "" {
		b, err := c.FS().ReadFile(c.Abs(cacert))
		if err != nil {
			return trouble(77, "error setting certificate file: %s", cacert)
		}
		cfg.RootCAs = x509.NewCertPool()
		cfg.RootCAs.AppendCertsFromPEM(b)
	} else if !insecure {
		cfg.RootCAs = x509.NewCertPool() // the guest's own store knows nobody here
	}
	if method == "" {
		method = http.MethodGet
		if head {
			method = http.MethodHead
		}
		if data != "" {
			method = http.MethodPost
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), strings.NewReader(data))
	if err != nil {
		return trouble(3, "%v", err)
	}
	if user != "" {
		name, pass, _ := strings.Cut(user, ":")
		req.SetBasicAuth(name, pass)
	}
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ":")
		req.Header.Set(k, strings.TrimSpace(v))
	}
	resp, err := o.HTTP(cfg, limit).Do(req)
	if err != nil {
		s := err.Error()
		switch {
		case ctx.Err() != nil:
			return shell.Signal(ctx)
		case strings.Contains(s, "no such host"):
			return trouble(6, "Could not resolve host: %s", u.Hostname())
		case strings.Contains(s, "certificate"):
			return trouble(60, "SSL certificate problem: %v", err)
		case strings.Contains(s, "deadline") || strings.Contains(s, "Timeout"):
			return trouble(28, "Operation timed out")
		}
		return trouble(7, "Failed to connect to %s: Connection refused", u.Host)
	}
	defer resp.Body.Close()
	if fail && resp.StatusCode >= 400 {
		if format != "" {
			c.Printf("%s", strings.NewReplacer("%{http_code}", strconv.Itoa(resp.StatusCode), `\n`, "\n").Replace(format))
		}
		return trouble(22, "The requested URL returned error: %d", resp.StatusCode)
	}
	if err := open(); err != nil {
		return trouble(23, "Failure writing output to destination")
	}
	if _, err := io.Copy(w, resp.Body); err != nil {
		return trouble(18, "transfer closed: %v", err)
	}
	if format != "" {
		c.Printf("%s", strings.NewReplacer("%{http_code}", strconv.Itoa(resp.StatusCode), `\n`, "\n").Replace(format))
	}
	return 0
}
