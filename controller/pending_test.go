package controller

func init() { planned = false }
