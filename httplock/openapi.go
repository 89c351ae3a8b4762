package httplock

import (
	_ "embed"
	"net/http"
)

// openapi describes the service, at /v1/openapi.json.
//
//go:embed openapi.json
var openapi []byte

func (h *Handler) openapi(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, "application/json", openapi)
}
