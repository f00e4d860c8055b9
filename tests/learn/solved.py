"""A lesson with a right answer in each exercise."""

import ast

from culm.learn.course import Lesson, exercises_in

CALL = (
    "return __import__('culm.learn.exercise', fromlist=['find']).find({name!r}).solution({given})"
)


def solved(lesson: Lesson) -> str:
    tree = ast.parse(lesson.text)
    for function, name in exercises_in(tree):
        given = ", ".join(one.arg for one in function.args.args)
        function.body = (
            ast.parse(f"def f():\n    {CALL.format(name=name, given=given)}").body[0].body
        )
    return ast.unparse(tree)
