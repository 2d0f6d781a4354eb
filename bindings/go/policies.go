// SPDX-License-Identifier: MIT

package kvc

/*
#include <kvc/kvc.h>
*/
import "C"

import "unsafe"

// Policies are the policies that a session could load, in order of name; broken files last.
type Policies struct {
	List []Policy
	Path string // the directories that were searched, ':' between them
}

// Policy is one policy that was found, or one file that is broken.
type Policy struct {
	Err     error  // nil, or why it can't be loaded
	Name    string // for a broken file the file's
	Path    string // its file; "" when linked in
	Version string // "" when broken
	Summary string // one line; "" when broken
	License string // SPDX identifier; "" when broken
	Caps    uint64 // KVC_CAP_… of kvc/policy.h
	ABI     uint32 // it was built with
	Params  []PolicyParam
}

// PolicyParam is one parameter of a policy.
type PolicyParam struct {
	Name    string
	Kind    uint32   // KVC_PARAM_… of kvc/policy.h
	Unit    string   // "tokens", "bytes", "bits", or ""
	Help    string   // one line
	Choices []string // the names that it may have, of a choice
}

// ListPolicies looks for policies where a session would.
func ListPolicies(params *Params) (*Policies, error) {
	var c *C.kvc_policies
	if err := params.with(func(p *C.kvc_params) C.int32_t {
		return C.kvc_policies_open(p, &c)
	}); err != nil {
		return nil, err
	}
	defer C.kvc_policies_close(c)
	out := &Policies{Path: C.GoString(C.kvc_policies_path(c))}
	for i := range C.kvc_policies_count(c) {
		policy, err := policyOf(c, i)
		if err != nil {
			return nil, err
		}
		out.List = append(out.List, policy)
	}
	return out, nil
}

func policyOf(c *C.kvc_policies, i C.uint32_t) (Policy, error) {
	var info C.kvc_policy_info
	info.struct_size = C.uint32_t(unsafe.Sizeof(info))
	if rc := C.kvc_policies_get(c, i, &info); rc < 0 {
		return Policy{}, failure(rc, nil)
	}
	policy := Policy{
		Err: failure(info.status, info.error), Name: C.GoString(info.name),
		Path: C.GoString(info.path), Version: C.GoString(info.version),
		Summary: C.GoString(info.summary), License: C.GoString(info.license),
		Caps: uint64(info.caps), ABI: uint32(info.abi),
	}
	for k := range info.n_param {
		var row *C.kvc_param
		if rc := C.kvc_policies_param(c, i, k, &row); rc < 0 {
			return Policy{}, failure(rc, nil)
		}
		policy.Params = append(policy.Params, paramOf(row))
	}
	return policy, nil
}

func paramOf(row *C.kvc_param) PolicyParam {
	param := PolicyParam{Name: C.GoString(row.name), Kind: uint32(row._type),
		Unit: C.GoString(row.unit), Help: C.GoString(row.help)}
	if row._type == C.KVC_PARAM_ENUM {
		// Ended by NULL.
		for choice := row.choice; *choice != nil; {
			param.Choices = append(param.Choices, C.GoString(*choice))
			choice = (**C.char)(unsafe.Add(unsafe.Pointer(choice), unsafe.Sizeof(*choice)))
		}
	}
	return param
}
