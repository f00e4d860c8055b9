"""The service over gRPC; needs the extra `grpc`."""
