// Checks authentication with tokens made by the gateway's JWT library: shared secrets, JWKS, key
// rotation, and forged tokens.
//
// Takes the program as its argument, starts it and prints one line per check.
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

const secret = "test secret of at least 32 characters"

var failed bool

func check(name string, ok bool, details any) {
	if ok {
		fmt.Println("ok  " + name)
		return
	}
	failed = true
	fmt.Printf("FAIL  %s: %v\n", name, details)
}

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Println("FAIL  tokens:", err)
		os.Exit(1)
	}
	return value
}

type server struct {
	*program.Server
	memory agentv1.MemoryServiceClient
}

func start(executable, data string, variables ...string) *server {
	started := must(program.Start(executable, data, append([]string{"DEMO_MODE=true", "AUTH=jwt"}, variables...)...))
	return &server{started, agentv1.NewMemoryServiceClient(started.Connection)}
}

// code returns the status of a call for a user with a token.
func (s *server) code(user, token string) codes.Code {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	_, err := s.memory.ListMemories(ctx, &agentv1.ListMemoriesRequest{UserId: user})
	return status.Code(err)
}

func (s *server) expect(name, user, token string, expected codes.Code) {
	actual := s.code(user, token)
	check(name, actual == expected, fmt.Sprintf("got %v, want %v", actual, expected))
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
	checkSharedSecret(executable, data)
	checkJWKS(executable, data)
	if failed {
		os.Exit(1)
	}
}

func checkSharedSecret(executable, data string) {
	server := start(executable, data, "JWT_SECRET="+secret, "JWT_ISSUER=gateway", "JWT_AUDIENCE=agent")
	defer server.Stop()
	token := func(change func(jwt.MapClaims)) string {
		return signed(jwt.SigningMethodHS256, []byte(secret), "", claims(change))
	}
	server.expect("golang_jwt_token_authenticates_subject", "ann", token(nil), codes.OK)
	server.expect("token_supplies_missing_user_id", "", token(nil), codes.OK)
	server.expect("token_for_other_user_is_denied", "bob", token(nil), codes.PermissionDenied)
	for name, change := range map[string]func(jwt.MapClaims){
		"expired_token":            func(c jwt.MapClaims) { c["exp"] = time.Now().Add(-time.Hour).Unix() },
		"token_of_other_issuer":    func(c jwt.MapClaims) { c["iss"] = "stranger" },
		"token_for_other_audience": func(c jwt.MapClaims) { c["aud"] = "stranger" },
		"token_not_yet_valid":      func(c jwt.MapClaims) { c["nbf"] = time.Now().Add(time.Hour).Unix() },
		"token_without_expiry":     func(c jwt.MapClaims) { delete(c, "exp") },
	} {
		server.expect(name+"_is_refused", "ann", token(change), codes.Unauthenticated)
	}
	none := signed(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, "", claims(nil))
	server.expect("unsigned_token_is_refused", "ann", none, codes.Unauthenticated)
	other := signed(jwt.SigningMethodHS384, []byte(secret), "", claims(nil))
	server.expect("token_with_other_hash_is_refused", "ann", other, codes.Unauthenticated)
}

// issuer is a JWKS server.
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

// stop closes the port and all connections.
func (i *issuer) stop() { _ = i.http.Close() }

func rs256(id string, key *rsa.PrivateKey) string {
	return signed(jwt.SigningMethodRS256, key, id, claims(nil))
}

func checkJWKS(executable, data string) {
	first := must(rsa.GenerateKey(rand.Reader, 2048))
	second := must(rsa.GenerateKey(rand.Reader, 2048))
	curve := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	issuer := publish(rsaKey("first", first), map[string]string{
		"kty": "EC", "kid": "curve", "crv": "P-256", "x": number(curve.X, 32), "y": number(curve.Y, 32),
	})
	server := start(executable, data, "JWT_JWKS_URL="+issuer.url)
	server.expect("rsa_key_from_jwks_authenticates", "ann", rs256("first", first), codes.OK)
	es256 := signed(jwt.SigningMethodES256, curve, "curve", claims(nil))
	server.expect("ec_key_from_jwks_authenticates", "ann", es256, codes.OK)
	check("jwks_is_fetched_once", issuer.fetches() == 1, issuer.fetches())
	server.expect("token_of_unpublished_key_is_refused", "ann", rs256("first", second), codes.Unauthenticated)
	public := pem.EncodeToMemory(&pem.Block{
		Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(&first.PublicKey)),
	})
	confused := signed(jwt.SigningMethodHS256, public, "first", claims(nil))
	server.expect("public_key_as_hmac_secret_is_refused", "ann", confused, codes.Unauthenticated)
	wrong := signed(jwt.SigningMethodRS256, first, "curve", claims(nil))
	server.expect("key_type_mismatch_is_refused", "ann", wrong, codes.Unauthenticated)
	server.expect("other_rsa_algorithm_is_refused", "ann",
		signed(jwt.SigningMethodRS512, first, "first", claims(nil)), codes.Unauthenticated)

	// Key rotation.
	issuer.add(rsaKey("second", second))
	server.expect("rotated_key_authenticates_at_once", "ann", rs256("second", second), codes.OK)
	server.expect("token_without_kid_tries_every_key", "ann", rs256("", second), codes.OK)
	server.Stop()

	checkUnreachableIssuer(executable, data, issuer, first, second)
}

// checkUnreachableIssuer stops the issuer, with a server that has cached its keys and with one that has not.
func checkUnreachableIssuer(executable, data string, issuer *issuer, known, unknown *rsa.PrivateKey) {
	server := start(executable, data, "JWT_JWKS_URL="+issuer.url)
	server.expect("keys_are_cached_while_issuer_is_up", "ann", rs256("first", known), codes.OK)
	fetched := issuer.fetches()
	issuer.stop()
	server.expect("cached_keys_work_while_issuer_is_down", "ann", rs256("first", known), codes.OK)
	server.expect("unknown_key_while_issuer_is_down_is_unavailable", "ann", rs256("third", unknown), codes.Unavailable)
	server.expect("cached_keys_still_work_after_failed_fetch", "ann", rs256("first", known), codes.OK)
	check("issuer_received_no_request", issuer.fetches() == fetched, issuer.fetches())
	server.Stop()

	server = start(executable, data, "JWT_JWKS_URL="+issuer.url)
	server.expect("server_without_keys_is_unavailable", "ann", rs256("first", known), codes.Unavailable)
	server.Stop()
}
