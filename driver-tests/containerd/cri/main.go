// A client of CRI: main SOCKET METHOD JSON. It prints the reply as JSON; an error's text goes to standard error.
//
// METHOD is one of RuntimeService or ImageService, JSON its request in protobuf's own mapping.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	_ "k8s.io/cri-api/pkg/apis/runtime/v1" // It registers the services.
)

func main() {
	if len(os.Args) != 4 {
		fail("usage: main SOCKET METHOD JSON")
	}
	method := find(protoreflect.Name(os.Args[2]))
	request, reply := message(method.Input()), message(method.Output())
	if err := protojson.Unmarshal([]byte(os.Args[3]), request); err != nil {
		fail(err)
	}
	connection, err := grpc.NewClient("unix:"+os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fail(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Second)
	defer cancel()
	path := fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name())
	if err := connection.Invoke(ctx, path, request, reply); err != nil {
		fail(err)
	}
	text, err := protojson.Marshal(reply)
	if err != nil {
		fail(err)
	}
	fmt.Println(string(text))
}

func find(name protoreflect.Name) protoreflect.MethodDescriptor {
	for _, service := range []protoreflect.FullName{"runtime.v1.RuntimeService", "runtime.v1.ImageService"} {
		found, err := protoregistry.GlobalFiles.FindDescriptorByName(service)
		if err != nil {
			fail(err)
		}
		if method := found.(protoreflect.ServiceDescriptor).Methods().ByName(name); method != nil {
			return method
		}
	}
	fail("CRI has no ", name)
	return nil
}

func message(of protoreflect.MessageDescriptor) proto.Message {
	found, err := protoregistry.GlobalTypes.FindMessageByName(of.FullName())
	if err != nil {
		fail(err)
	}
	return found.New().Interface()
}

func fail(words ...any) {
	fmt.Fprintln(os.Stderr, words...)
	os.Exit(1)
}
