// Makes tokens by the library that the gateway uses, and tries them on the agent service: shared
// secrets, published keys, keys that change, and tokens that are not what they seem.
//
// It takes the program as its argument, starts it itself and prints one line per check.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/sparkle/agent-service/tests/e2e/go/program"
	agentv1 "github.com/sparkle/gateway/gen/agent/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const secret = "the secret that the gateway shares"

var failed bool

func check(what string, ok bool, why any) {
	if ok {
		fmt.Println("ok  " + what)
		return
	}
	failed = true
	fmt.Printf("FAIL  %s: %v\n", what, why)
}

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Println("FAIL  tokens:", err)
		os.Exit(1)
	}
	return value
}

// server is a running agent service.
type server struct {
	*program.Running
	memory agentv1.MemoryServiceClient
}

func start(executable, data string, variables ...string) *server {
	running := must(program.Start(executable, data, append([]string{"DEMO_MODE=true", "AUTH=jwt"}, variables...)...))
	return &server{running, agentv1.NewMemoryServiceClient(running.Connection)}
}

// code is how a call for a user ends that shows a token.
func (s *server) code(user, token string) codes.Code {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	_, err := s.memory.ListMemories(ctx, &agentv1.ListMemoriesRequest{UserId: user})
	return status.Code(err)
}

func (s *server) expect(what, user, token string, expected codes.Code) {
	actual := s.code(user, token)
	check(what, actual == expected, fmt.Sprintf("%v, not %v", actual, expected))
}

func claims(change func(jwt.MapClaims)) jwt.MapClaims {
	now := time.Now()
	claims := jwt.MapClaims{
		"sub": "ann", "iss": "gateway", "aud": "agent", "iat": now.Unix(), "exp": now.Add(time.Minute).Unix(),
	}
	if change != nil {
		change(claims)
	}
	return claims
}

func signed(method jwt.SigningMethod, key any, id string, claims jwt.MapClaims) string {
	token := jwt.NewWithClaims(method, claims)
	if id != "" {
		token.Header["kid"] = id
	}
	return must(token.SignedString(key))
}

func number(n *big.Int, size int) string {
	return base64.RawURLEncoding.EncodeToString(n.FillBytes(make([]byte, size)))
}

func rsaKey(id string, key *rsa.PrivateKey) map[string]string {
	return map[string]string{
		"kty": "RSA", "kid": id, "use": "sig", "alg": "RS256",
		"n": number(key.N, key.Size()), "e": number(big.NewInt(int64(key.E)), 3),
	}
}

func main() {
	executable := os.Args[1]
	data := must(os.MkdirTemp("", "tokens"))
	defer func() { _ = os.RemoveAll(data) }()
	shared(executable, data)
	published(executable, data)
	if failed {
		os.Exit(1)
	}
}

func shared(executable, data string) {
	server := start(executable, data, "JWT_SECRET="+secret, "JWT_ISSUER=gateway", "JWT_AUDIENCE=agent")
	defer server.Stop()
	token := func(change func(jwt.MapClaims)) string {
		return signed(jwt.SigningMethodHS256, []byte(secret), "", claims(change))
	}
	server.expect("a token of golang-jwt lets its subject in", "ann", token(nil), codes.OK)
	server.expect("a token names the user where the call does not", "", token(nil), codes.OK)
	server.expect("a token is of no use for another user", "bob", token(nil), codes.PermissionDenied)
	for what, change := range map[string]func(jwt.MapClaims){
		"an expired token":           func(c jwt.MapClaims) { c["exp"] = time.Now().Add(-time.Hour).Unix() },
		"a token of another issuer":  func(c jwt.MapClaims) { c["iss"] = "stranger" },
		"a token for somebody else":  func(c jwt.MapClaims) { c["aud"] = "stranger" },
		"a token that is not yet so": func(c jwt.MapClaims) { c["nbf"] = time.Now().Add(time.Hour).Unix() },
		"a token without an expiry":  func(c jwt.MapClaims) { delete(c, "exp") },
	} {
		server.expect(what+" is refused", "ann", token(change), codes.Unauthenticated)
	}
	none := signed(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, "", claims(nil))
	server.expect("a token without a signature is refused", "ann", none, codes.Unauthenticated)
	other := signed(jwt.SigningMethodHS384, []byte(secret), "", claims(nil))
	server.expect("a token by another hash is refused", "ann", other, codes.Unauthenticated)
}

// issuer publishes keys, until it is away.
type issuer struct {
	http    *http.Server
	url     string
	mutex   sync.Mutex
	keys    []map[string]string
	fetched int
}

func publish(keys ...map[string]string) *issuer {
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	i := &issuer{keys: keys, url: "http://" + listener.Addr().String() + "/keys"}
	i.http = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		i.mutex.Lock()
		defer i.mutex.Unlock()
		i.fetched++
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": i.keys})
	})}
	go func() { _ = i.http.Serve(listener) }()
	return i
}

func (i *issuer) add(key map[string]string) {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	i.keys = append(i.keys, key)
}

func (i *issuer) fetches() int {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	return i.fetched
}

// leave closes the port and every connection to it.
func (i *issuer) leave() { _ = i.http.Close() }

func rs256(id string, key *rsa.PrivateKey) string {
	return signed(jwt.SigningMethodRS256, key, id, claims(nil))
}

func published(executable, data string) {
	first := must(rsa.GenerateKey(rand.Reader, 2048))
	second := must(rsa.GenerateKey(rand.Reader, 2048))
	curve := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	issuer := publish(rsaKey("first", first), map[string]string{
		"kty": "EC", "kid": "curve", "crv": "P-256", "x": number(curve.X, 32), "y": number(curve.Y, 32),
	})
	server := start(executable, data, "JWT_JWKS_URL="+issuer.url)
	server.expect("a token by a published RSA key lets its subject in", "ann", rs256("first", first), codes.OK)
	es256 := signed(jwt.SigningMethodES256, curve, "curve", claims(nil))
	server.expect("a token by a published elliptic key lets its subject in", "ann", es256, codes.OK)
	check("keys are fetched once", issuer.fetches() == 1, issuer.fetches())
	server.expect("a token by another's key is refused", "ann", rs256("first", second), codes.Unauthenticated)
	public := pem.EncodeToMemory(&pem.Block{
		Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(&first.PublicKey)),
	})
	confused := signed(jwt.SigningMethodHS256, public, "first", claims(nil))
	server.expect("a public key is no secret", "ann", confused, codes.Unauthenticated)
	wrong := signed(jwt.SigningMethodRS256, first, "curve", claims(nil))
	server.expect("a key of another kind is refused", "ann", wrong, codes.Unauthenticated)
	server.expect("another RSA algorithm is refused", "ann",
		signed(jwt.SigningMethodRS512, first, "first", claims(nil)), codes.Unauthenticated)

	// The issuer changes its key.
	issuer.add(rsaKey("second", second))
	server.expect("a new key counts as soon as it is published", "ann", rs256("second", second), codes.OK)
	server.expect("a token that names no key is checked by each of them", "ann", rs256("", second), codes.OK)
	server.Stop()

	away(executable, data, issuer, first, second)
}

// away tries an issuer that goes away, with a server that knows its keys and with one that does not.
func away(executable, data string, issuer *issuer, known, unknown *rsa.PrivateKey) {
	server := start(executable, data, "JWT_JWKS_URL="+issuer.url)
	server.expect("a server learns the keys before the issuer goes", "ann", rs256("first", known), codes.OK)
	fetched := issuer.fetches()
	issuer.leave()
	server.expect("known keys go on while the issuer is away", "ann", rs256("first", known), codes.OK)
	server.expect("a key that could not be fetched is nobody's fault", "ann", rs256("third", unknown), codes.Unavailable)
	server.expect("and known keys still go on", "ann", rs256("first", known), codes.OK)
	check("the issuer was really away", issuer.fetches() == fetched, issuer.fetches())
	server.Stop()

	server = start(executable, data, "JWT_JWKS_URL="+issuer.url)
	server.expect("without an issuer nobody can be let in yet", "ann", rs256("first", known), codes.Unavailable)
	server.Stop()
}
