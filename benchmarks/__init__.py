"""What paramd costs, beside what grpcio itself costs on the same work in the same run."""
