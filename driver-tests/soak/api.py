"""The messages of containerd's services, as the repository's protos have them."""

from google.protobuf import descriptor_pb2, message_factory

# By their full names.
MESSAGES = {}


def read(path):
    """Take them from a file of protoc's (`--descriptor_set_out`)."""
    files = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
    MESSAGES.update(message_factory.GetMessages(files.file))


def message(name):
    """A class of messages: `services.snapshots.v1.Info`."""
    return MESSAGES[f"containerd.{name}"]


def value(name, field, word):
    """The number of a word that an enumeration has, which is the type of a message's field."""
    return message(name).DESCRIPTOR.fields_by_name[field].enum_type.values_by_name[word].number
