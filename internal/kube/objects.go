// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// The objects below have the fields that are read here, and no others: of a Node, whose images and conditions are most of it, only a tenth
// is ever decoded and kept.

type node struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		PodCIDR  string   `json:"podCIDR"`
		PodCIDRs []string `json:"podCIDRs"`
	} `json:"spec"`
	Status struct {
		Addresses  []nodeAddress   `json:"addresses"`
		Conditions []nodeCondition `json:"conditions"`
	} `json:"status"`
}

type nodeAddress struct {
	Type    string `json:"type"`
	Address string `json:"address"`
}

type nodeCondition struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

type secret struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Type              string            `json:"type,omitempty"`
	Data              map[string][]byte `json:"data"`
}

type configMap struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Data              map[string]string `json:"data"`
}

type service struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		ClusterIPs []string `json:"clusterIPs"`
	} `json:"spec"`
}

type serviceCIDR struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		CIDRs []string `json:"cidrs"`
	} `json:"spec"`
}

// daemonSet is known by its metadata alone.
type daemonSet struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
}

type event struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	InvolvedObject    objectReference `json:"involvedObject"`
	Reason            string          `json:"reason"`
	Message           string          `json:"message"`
	Source            eventSource     `json:"source"`
	FirstTimestamp    metav1.Time     `json:"firstTimestamp"`
	LastTimestamp     metav1.Time     `json:"lastTimestamp"`
	Count             int32           `json:"count"`
	Type              string          `json:"type"`
}

type objectReference struct {
	Kind       string    `json:"kind"`
	APIVersion string    `json:"apiVersion,omitempty"`
	Namespace  string    `json:"namespace,omitempty"`
	Name       string    `json:"name"`
	UID        types.UID `json:"uid,omitempty"`
}

type eventSource struct {
	Component string `json:"component"`
	Host      string `json:"host"`
}

// list is a list of objects of one kind.
type list[T any] struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []T `json:"items"`
}

func (l *list[T]) DeepCopyObject() runtime.Object {
	c := *l
	c.Items = slices.Clone(l.Items) // nothing here writes into an object that it was given
	return &c
}

func (o *node) DeepCopyObject() runtime.Object {
	c := *o
	o.DeepCopyInto(&c.ObjectMeta)
	c.Spec.PodCIDRs = slices.Clone(o.Spec.PodCIDRs)
	c.Status.Addresses = slices.Clone(o.Status.Addresses)
	c.Status.Conditions = slices.Clone(o.Status.Conditions)
	return &c
}

func (o *secret) DeepCopyObject() runtime.Object {
	c := *o
	o.DeepCopyInto(&c.ObjectMeta)
	c.Data = maps.Clone(o.Data)
	return &c
}

func (o *configMap) DeepCopyObject() runtime.Object {
	c := *o
	o.DeepCopyInto(&c.ObjectMeta)
	c.Data = maps.Clone(o.Data)
	return &c
}

func (o *service) DeepCopyObject() runtime.Object {
	c := *o
	o.DeepCopyInto(&c.ObjectMeta)
	c.Spec.ClusterIPs = slices.Clone(o.Spec.ClusterIPs)
	return &c
}

func (o *serviceCIDR) DeepCopyObject() runtime.Object {
	c := *o
	o.DeepCopyInto(&c.ObjectMeta)
	c.Spec.CIDRs = slices.Clone(o.Spec.CIDRs)
	return &c
}

func (o *daemonSet) DeepCopyObject() runtime.Object {
	c := *o
	o.DeepCopyInto(&c.ObjectMeta)
	return &c
}

func (o *event) DeepCopyObject() runtime.Object {
	c := *o
	o.DeepCopyInto(&c.ObjectMeta)
	return &c
}

// objects knows these types by the names that the API server has for them.
func objects() *runtime.Scheme {
	s := runtime.NewScheme()
	core, apps, networking := schema.GroupVersion{Version: "v1"}, schema.GroupVersion{Group: "apps", Version: "v1"}, schema.GroupVersion{Group: "networking.k8s.io", Version: "v1"}
	s.AddKnownTypeWithName(core.WithKind("Node"), &node{})
	s.AddKnownTypeWithName(core.WithKind("NodeList"), &list[node]{})
	s.AddKnownTypeWithName(core.WithKind("Secret"), &secret{})
	s.AddKnownTypeWithName(core.WithKind("SecretList"), &list[secret]{})
	s.AddKnownTypeWithName(core.WithKind("ConfigMap"), &configMap{})
	s.AddKnownTypeWithName(core.WithKind("Service"), &service{})
	s.AddKnownTypeWithName(core.WithKind("Event"), &event{})
	s.AddKnownTypeWithName(apps.WithKind("DaemonSet"), &daemonSet{})
	s.AddKnownTypeWithName(apps.WithKind("DaemonSetList"), &list[daemonSet]{})
	s.AddKnownTypeWithName(networking.WithKind("ServiceCIDR"), &serviceCIDR{})
	s.AddKnownTypeWithName(networking.WithKind("ServiceCIDRList"), &list[serviceCIDR]{})
	for _, gv := range []schema.GroupVersion{core, apps, networking} {
		metav1.AddToGroupVersion(s, gv)
	}
	return s
}
