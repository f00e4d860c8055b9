"""The course: lessons that import the library, and exercises that are checked against it."""
